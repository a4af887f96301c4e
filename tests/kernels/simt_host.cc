#include "tests/kernels/simt_host.h"

#include "kernels/simt/host.h"
#include "kernels/simt/select.h"

namespace ringfold::test {

namespace simt = kernels::simt;

bool fold_on_host(DataType type, ReduceKind kind, bool complete, simt::FoldArgs args, HostGrid grid) {
  bool found = false;
  simt::visit_reduction(type, kind, complete, [&](auto number, auto operation, auto post) {
    using N = typename decltype(number)::Type;
    using Op = typename decltype(operation)::Type;
    constexpr bool kPost = decltype(post)::value;
    found = true;
    simt::set_alignment(args, size_of(type));
    simt::launch_on_host(grid.blocks, grid.warps, [&](simt::HostBlock& block) {
      if constexpr (std::is_same_v<Op, simt::Sum>) {
        switch (args.inputs) {
          case 2: return simt::fold<N, Op, kPost, 2>(block, args);
          case 3: return simt::fold<N, Op, kPost, 3>(block, args);
          case 8: return simt::fold<N, Op, kPost, 8>(block, args);
          default: break;
        }
      }
      simt::fold<N, Op, kPost, 0>(block, args);
    });
  });
  return found;
}

template <class C, bool kCareful>
static void launch_combine(const simt::CombineArgs& args, HostGrid grid) {
  if (args.begin == args.end) return;
  simt::launch_on_host(grid.blocks, grid.warps, [&](simt::HostBlock& block) {
    if (args.code == nullptr) return simt::combine<C, kCareful, false, false>(block, args);
    if (args.values == nullptr && args.residual == nullptr)
      return simt::combine<C, kCareful, true, false>(block, args);
    simt::combine<C, kCareful, true, true>(block, args);
  });
}

void combine_on_host(const Codec& codec, simt::CombineArgs args, HostGrid grid) {
  args.call.keep = codec.keep;
  simt::visit_codec(codec, [&](auto tag) {
    using C = typename decltype(tag)::Type;
    const size_t groups = (args.elems + simt::kGroup - 1) / simt::kGroup;
    args.begin = 0;
    args.end = simt::fast_groups(args, C::kAlign, args.code != nullptr && C::kStochastic);
    launch_combine<C, false>(args, grid);
    args.begin = args.end;
    args.end = groups;
    launch_combine<C, true>(args, grid);
  });
}

}  // namespace ringfold::test
