// A store-load fence of which one side costs nothing: who seldom looks makes all others' processors fence at once.
//
// Two threads that each store one word and then load the other's must fence between the two, or both may load the old
// values. With the system's help the one in a hurry needs only keep the order in its program, when the other calls
// fence_everybody() between its own store and load: that interrupts all processors which run a process that has
// called join_fences(), and so orders what they do before it against what they do after.
#pragma once

#include <atomic>

namespace ringfold::shm {

// Makes this process one whose threads fence_everybody() of any process reaches. False where the system cannot: then
// both sides need fences of their own. Cheap after the first call; any thread.
bool join_fences();
// Some microseconds. Only where join_fences() has said true.
void fence_everybody();
// The side in a hurry: keeps the compiler from changing the order.
inline void light_fence() { std::atomic_signal_fence(std::memory_order_seq_cst); }

}  // namespace ringfold::shm
