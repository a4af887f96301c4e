// The kernels that wait for each other, on threads.
#include "kernels/simt/host.h"
#include "kernels/simt/select.h"
#include "tests/kernels/simt_host.h"

namespace ringfold::test {

namespace simt = kernels::simt;

template <class Body>
static void with_operation(DataType type, ReduceKind kind, int blocks, Body body) {
  const auto launch = [&](auto number, auto operation, auto post) {
    simt::launch_on_host(static_cast<size_t>(blocks), 1,
                         [&](simt::HostBlock& block) { body(block, number, operation, post); });
  };
  if (type == DataType::kF32) simt::visit_operation<simt::F32>(kind, true, launch);
  if (type == DataType::kF16) simt::visit_operation<simt::F16>(kind, true, launch);
  if (type == DataType::kBF16) simt::visit_operation<simt::BF16>(kind, true, launch);
}

void all_reduce_on_host(const simt::OneShotArgs& args, DataType type, ReduceKind kind, int blocks) {
  with_operation(type, kind, blocks,
                 [&]<class N, class Op, class Post>(auto& block, simt::Tag<N>, simt::Tag<Op>, Post) {
                   simt::one_shot<N, Op, Post::value>(block, args);
                 });
}

void all_reduce_on_host(const simt::TwoShotArgs& args, DataType type, ReduceKind kind, int ranks, int blocks) {
  with_operation(type, kind, blocks,
                 [&]<class N, class Op, class Post>(auto& block, simt::Tag<N>, simt::Tag<Op>, Post) {
                   switch (ranks) {
                     case 2: return simt::two_shot<N, Op, Post::value, 2>(block, args);
                     case 4: return simt::two_shot<N, Op, Post::value, 4>(block, args);
                     case 8: return simt::two_shot<N, Op, Post::value, 8>(block, args);
                     default: return;
                   }
                 });
}

void multicast_on_host(const simt::MulticastArgs& args, DataType type, bool scale, int blocks) {
  const auto launch = [&]<class N>(simt::Tag<N>) {
    simt::launch_on_host(static_cast<size_t>(blocks), 1, [&](simt::HostBlock& block) {
      scale ? simt::multicast_all_reduce<N, true>(block, args) : simt::multicast_all_reduce<N, false>(block, args);
    });
  };
  if (type == DataType::kF32) launch(simt::Tag<simt::F32>());
  if (type == DataType::kF16) launch(simt::Tag<simt::F16>());
  if (type == DataType::kBF16) launch(simt::Tag<simt::BF16>());
}

}  // namespace ringfold::test
