#include "kernels/copy.h"

#include <cstdint>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/copy.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace ringfold::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void stream(uint8_t* dst, const uint8_t* src, size_t bytes) {
  const hn::ScalableTag<uint8_t> d;
  constexpr size_t kVector = hn::MaxLanes(decltype(d)());
  constexpr size_t kBlock = 64 > kVector ? 64 : kVector;  // whole cache lines
  size_t at = (kBlock - reinterpret_cast<uintptr_t>(dst) % kBlock) % kBlock;
  if (at > bytes) at = bytes;
  copy(dst, src, at);
  for (; bytes - at >= kBlock; at += kBlock) {
    for (size_t i = at; i < at + kBlock; i += kVector) hn::Stream(hn::LoadU(d, src + i), d, dst + i);
  }
  copy(dst + at, src + at, bytes - at);
  hwy::FlushStream();
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace ringfold::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringfold::kernels {

HWY_EXPORT(stream);

void copy_streaming(void* dst, const void* src, size_t bytes) {
  HWY_DYNAMIC_DISPATCH(stream)(static_cast<uint8_t*>(dst), static_cast<const uint8_t*>(src), bytes);
}

}  // namespace ringfold::kernels
#endif
