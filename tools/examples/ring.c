// How long messages take around a ring of ranks, in C: each rank sends to the next and receives from the one before.
//
//   cc ring.c $(pkg-config --cflags --libs ringfold) -o ring && ringfold run -n 4 -- ./ring
#include <ringfold/ringfold.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { kRounds = 200, kLargest = 1 << 20 };

static double now_us(void) {
  struct timespec t;
  timespec_get(&t, TIME_UTC);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int failed(const char* what) {
  ringfold_verdict verdict = RINGFOLD_VERDICT_INIT;
  fprintf(stderr, "%s: %s\n", what, ringfold_last_error());
  if (ringfold_last_verdict(&verdict)) fprintf(stderr, "the culprit is rank %d on %s\n", verdict.rank, verdict.host);
  return 1;
}

int main(void) {
  ringfold_comm* comm = NULL;
  void *out = NULL, *in = NULL;
  if (ringfold_comm_init(&comm, NULL) != RINGFOLD_OK) return failed("init");
  const int rank = ringfold_comm_rank(comm), size = ringfold_comm_size(comm);
  const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
  // Memory that neighbours on this host read in place.
  if (ringfold_allocate(&out, kLargest) != RINGFOLD_OK || ringfold_allocate(&in, kLargest) != RINGFOLD_OK)
    return failed("allocate");
  memset(out, rank + 1, kLargest);
  if (rank == 0) printf("%10s %12s %10s\n", "bytes", "us", "MB/s");
  for (size_t bytes = 8; bytes <= kLargest; bytes *= 8) {
    if (ringfold_barrier(comm, NULL, NULL) != RINGFOLD_OK) return failed("barrier");
    const double begin = now_us();
    for (int i = 0; i < kRounds; ++i) {
      if (ringfold_send_recv(comm, out, bytes, next, in, bytes, previous, RINGFOLD_U8, i, NULL, NULL) != RINGFOLD_OK)
        return failed("send_recv");
    }
    double us = (now_us() - begin) / kRounds;
    if (((unsigned char*)in)[bytes - 1] != previous + 1) return fprintf(stderr, "rank %d got wrong bytes\n", rank), 1;
    // The slowest rank counts.
    if (ringfold_all_reduce(comm, &us, &us, 1, RINGFOLD_F64, RINGFOLD_MAX, NULL, NULL) != RINGFOLD_OK)
      return failed("all_reduce");
    if (rank == 0) printf("%10zu %12.2f %10.0f\n", bytes, us, (double)bytes / us);
  }
  ringfold_deallocate(out);
  ringfold_deallocate(in);
  ringfold_comm_destroy(comm);
  return 0;
}
