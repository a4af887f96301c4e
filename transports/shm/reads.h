// What it takes to read another process's memory, and whether that pays.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

namespace ringfold::shm {

// Reads from another process's memory, whole or not at all; errno says why not. The kernel may move less than asked.
// Counts its calls of the system.
bool read_memory(pid_t pid, uint64_t address, std::byte* destination, size_t bytes, uint64_t* calls);

// Memory of this process for the reads_pay() of others: kSampleBytes of it.
inline constexpr size_t kSampleBytes = 64 << 10;
const std::byte* sample();

// Does one read of another process's memory cost less than the two copies through a slot?
//
// The kernel looks up every page. In a virtual machine on an EPYC (Linux 6.18) that costs 2 to 5 times as much as
// both copies, at 16 KiB (2.2 us against 0.4) as at 1 MiB (150 us against 73); in one on a Xeon, same kernel, 64 KiB
// take 2.4 us, a copy within a core's cache 1.3, and two copies by two cores, which take each line from each other, 4
// or more. So it is measured, once in each process: the least of several reads of a peer's sample, beside the least
// of as many copies of so much.
bool reads_pay(pid_t pid, uint64_t sample);

}  // namespace ringfold::shm
