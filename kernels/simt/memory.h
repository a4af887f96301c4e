// Accesses of 16 bytes and flags that other processors read, on a GPU and on a CPU.
#pragma once

#include "kernels/simt/exact.h"

#if !defined(__CUDACC__)
#include <atomic>
#include <chrono>
#include <thread>
#endif

namespace ringfold::kernels::simt {

struct Quad {
  uint32_t word[4];
};

#if defined(__CUDACC__)
// Streams pass by the first-level cache; nothing in these kernels is read twice. Not `.nc`: the output may be an
// input.
RF_SIMT Quad load_quad(const void* p) {
  Quad q;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(q.word[0]), "=r"(q.word[1]), "=r"(q.word[2]), "=r"(q.word[3])
               : "l"(p)
               : "memory");
  return q;
}
RF_SIMT void store_quad(void* p, const Quad& q) {
  asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(q.word[0]), "r"(q.word[1]),
               "r"(q.word[2]), "r"(q.word[3])
               : "memory");
}
template <class T>
RF_SIMT T load_at(const void* p) {  // aligned for T
  return *static_cast<const T*>(p);
}
template <class T>
RF_SIMT void store_at(void* p, T v) {
  *static_cast<T*>(p) = v;
}

// Flags of a peer: what was written before `publish` is seen after the `observe` that returns its value.
RF_SIMT void publish(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
RF_SIMT uint32_t observe(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
RF_SIMT uint32_t peek(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
RF_SIMT void poke(uint32_t* flag, uint32_t value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
// Returns what was there; stores only over zero.
RF_SIMT uint32_t claim(uint32_t* flag, uint32_t value) { return atomicCAS_system(flag, 0u, value); }
// Adds one and returns what was there, ordered as release and acquire.
RF_SIMT uint32_t count_up(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}
// Two words of 64 bits, each of which is whole whenever it is seen: data and flag in one.
struct Packet {
  uint64_t half[2];
};
RF_SIMT void store_packet(void* p, const Packet& v) {
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1,%2};" ::"l"(p), "l"(v.half[0]), "l"(v.half[1]) : "memory");
}
RF_SIMT Packet load_packet(const void* p) {
  Packet v;
  asm volatile("ld.relaxed.sys.global.v2.u64 {%0,%1}, [%2];" : "=l"(v.half[0]), "=l"(v.half[1]) : "l"(p) : "memory");
  return v;
}
RF_SIMT uint64_t now_ns() {
  uint64_t t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
}
RF_SIMT void pause(uint32_t ns) { __nanosleep(ns); }
RF_SIMT void relax() {}
#else
RF_SIMT Quad load_quad(const void* p) {
  Quad q;
  std::memcpy(&q, p, sizeof(q));
  return q;
}
RF_SIMT void store_quad(void* p, const Quad& q) { std::memcpy(p, &q, sizeof(q)); }
template <class T>
RF_SIMT T load_at(const void* p) {
  T v;
  std::memcpy(&v, p, sizeof(T));
  return v;
}
template <class T>
RF_SIMT void store_at(void* p, T v) {
  std::memcpy(p, &v, sizeof(T));
}

RF_SIMT void publish(uint32_t* flag, uint32_t value) {
  std::atomic_ref<uint32_t>(*flag).store(value, std::memory_order_release);
}
RF_SIMT uint32_t observe(const uint32_t* flag) {
  return std::atomic_ref<uint32_t>(*const_cast<uint32_t*>(flag)).load(std::memory_order_acquire);
}
RF_SIMT uint32_t peek(const uint32_t* flag) {
  return std::atomic_ref<uint32_t>(*const_cast<uint32_t*>(flag)).load(std::memory_order_relaxed);
}
RF_SIMT void poke(uint32_t* flag, uint32_t value) {
  std::atomic_ref<uint32_t>(*flag).store(value, std::memory_order_relaxed);
}
RF_SIMT uint32_t claim(uint32_t* flag, uint32_t value) {
  uint32_t before = 0;
  std::atomic_ref<uint32_t>(*flag).compare_exchange_strong(before, value);
  return before;
}
RF_SIMT uint32_t count_up(uint32_t* counter) {
  return std::atomic_ref<uint32_t>(*counter).fetch_add(1, std::memory_order_acq_rel);
}
struct Packet {
  uint64_t half[2];
};
RF_SIMT void store_packet(void* p, const Packet& v) {
  auto* to = static_cast<uint64_t*>(p);
  for (int i = 0; i < 2; ++i) std::atomic_ref<uint64_t>(to[i]).store(v.half[i], std::memory_order_relaxed);
}
RF_SIMT Packet load_packet(const void* p) {
  auto* from = const_cast<uint64_t*>(static_cast<const uint64_t*>(p));
  Packet v;
  for (int i = 0; i < 2; ++i) v.half[i] = std::atomic_ref<uint64_t>(from[i]).load(std::memory_order_relaxed);
  return v;
}
RF_SIMT uint64_t now_ns() {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}
RF_SIMT void pause(uint32_t ns) { std::this_thread::sleep_for(std::chrono::nanoseconds(ns)); }
RF_SIMT void relax() { std::this_thread::yield(); }
#endif

// A value at any address.
template <class T>
RF_SIMT T load_bytes(const std::byte* p) {
  uint64_t v = 0;
  for (size_t i = 0; i < sizeof(T); ++i) v |= static_cast<uint64_t>(p[i]) << (8 * i);
  return static_cast<T>(v);
}
template <class T>
RF_SIMT void store_bytes(std::byte* p, T v) {
  for (size_t i = 0; i < sizeof(T); ++i) p[i] = static_cast<std::byte>(static_cast<uint64_t>(v) >> (8 * i));
}

}  // namespace ringfold::kernels::simt
