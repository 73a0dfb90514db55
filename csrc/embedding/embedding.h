// Rows of a table by id, and the row-sparse gradient of the table.
//
// Math       forward: y[n] = w[ids[n]].
//            backward: rows[0:count] are the ids that occur, once each and rising;
//            drows[i] = sum of dy[n] over the n with ids[n] = rows[i].
// Shapes     y, dy, drows [N, D]; ids, rows int32 [N]; w [V, D]; N < 2^32. Rows of `rows` and
//            `drows` from count on are left as they are.
// Aliasing   none.
// Saved      nothing; backward takes the ids of the forward.
// Numerics   a sum runs in order of position, in the arrays' type. The caller has checked that
//            ids lie in [0, V).
// Threading  forward over positions, backward over distinct ids and columns, after a serial
//            radix sort; same bits for any team size.
#pragma once

#include <cstdint>

namespace nlm {

template <class T>
struct EmbeddingForwardArgs {
    T* y;
    const int32_t* ids;
    const T* w;
    int64_t N, V, D;
};

template <class T>
struct EmbeddingBackwardArgs {
    int32_t* rows;
    T* drows;
    int64_t* count;  // out: number of distinct ids
    const int32_t* ids;
    const T* dy;
    int64_t N, D;
};

}  // namespace nlm
