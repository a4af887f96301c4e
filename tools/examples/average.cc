// The mean of a vector over all ranks, in C++.
//
//   g++ -std=c++20 average.cc $(pkg-config --cflags --libs ringfold) -o average && ringfold run -n 4 -- ./average
#include <cstdio>
#include <ringfold/ringfold.hpp>
#include <vector>

int main() {
  auto comm = ringfold::Communicator::init();  // place and peers from the launcher's variables
  if (!comm.ok()) return std::fprintf(stderr, "%s\n", comm.status().to_string().c_str()), 1;
  std::vector<float> gradient(1 << 20, 1.0f + static_cast<float>(comm->rank()));
  const ringfold::Status status =
      comm->all_reduce(gradient.data(), gradient.data(), gradient.size(), ringfold::DataType::kF32, ringfold::kAvg)
          .wait();
  if (!status.ok()) return std::fprintf(stderr, "%s\n", status.to_string().c_str()), 1;
  std::printf("rank %d of %d: %g\n", comm->rank(), comm->size(), gradient.back());
}
