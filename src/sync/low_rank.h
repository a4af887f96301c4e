// The dense products of low-rank compression. A matrix M of m rows and n columns lies row by row; a factor of rank r
// lies column by column, so that each of its columns is a vector that loops run along: P has r columns of m elements,
// Q has r columns of n.
//
// All are plain loops with a fixed order of additions, and the build has no fused multiply-add (-ffp-contract=off):
// the same arguments give the same bits on every processor, which is what keeps replicas equal. Matrices are walked
// in stripes of columns, so wide that a stripe of Q stays in the second-level cache while the rows of M stream past
// it.
//
// One thread of an EPYC VM with two busy cores, the four products and orthonormalising P, for a matrix of 1024 x 4096
// (16 MiB): 7.4 ms at r = 1, 10.5 ms at 4, 40 ms at 16.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace ringfold::sync {

struct MatrixShape {
  size_t rows = 0;
  size_t cols = 0;
  size_t elems() const { return rows * cols; }
};

// M += E, then P = M Q. O(m n r) operations, M and E read once, M written once.
void add_and_project(MatrixShape shape, size_t rank, float* m, const float* e, const float* q, float* p);

// Q = M^T P. O(m n r), M read once.
void project_back(MatrixShape shape, size_t rank, const float* m, const float* p, float* q);

// M -= P Q^T. O(m n r), M read and written once.
void subtract_product(MatrixShape shape, size_t rank, const float* p, const float* q, float* m);

// M = P Q^T. O(m n r), M written once.
void expand_product(MatrixShape shape, size_t rank, const float* p, const float* q, float* m);

// Makes the r columns of P orthonormal: Gram-Schmidt, each column against those before it, twice, with sums in
// double. A column of which less than a hundred-thousandth is independent of those before it (f32 products leave
// about 1e-6 of noise there) becomes zero, and its place in `alive` 0, all others 1. O(m r^2).
void orthonormalise(size_t rows, size_t rank, float* p, std::span<uint8_t> alive);

// Scales a vector to length 1; false, and leaves it alone, where its length is zero or not finite.
bool normalise(std::span<float> vector);

bool all_finite(std::span<const float> values);

// Uniform in [-1, 1), the same everywhere for the same key.
void fill_random(std::span<float> values, uint64_t key);

}  // namespace ringfold::sync
