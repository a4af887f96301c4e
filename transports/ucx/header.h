// What goes in front of every message, in native byte order (UCX refuses peers of another one), and how a put's
// preamble goes with it.
//
// As short as can be: with UCX's own words in front, a header of 20 bytes and a payload of 8 are the most that lies
// in one cache line of UCX's shared memory, and a second line costs a fifth of the round trip (0.35 us instead of
// 0.29, `ucx_perftest -t ucp_am_lat -s 8 -H 24` and `-H 20` on an Intel Xeon).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ringfold/transport.h"

namespace ringfold::transport::ucx {

struct Header {
  enum Kind : uint8_t { kPut, kCredit, kOpened, kBye, kHello };
  uint32_t tag = 0;     // of the communicator and epoch
  uint16_t from = 0;    // rank
  uint16_t number = 0;  // of the put: its low bits, as of the next
  uint16_t credit = 0;  // releases on this lane so far
  uint8_t lane : 4 = 0;
  uint8_t kind : 4 = kPut;
  uint8_t preamble = 0;    // kPreamble if there is one, and a bit for each of its words that is sent
  uint32_t words[6] = {};  // those, without gaps
  static constexpr size_t kPlainBytes = 12;
  static constexpr uint8_t kPreamble = 8;
  size_t bytes() const { return kPlainBytes + 8 * sent_words(preamble); }
  static size_t sent_words(uint8_t preamble) { return 0x32212110u >> 4 * (preamble & 7) & 3; }
};
static_assert(sizeof(Header) == Header::kPlainBytes + sizeof(Preamble));

// Of the preambles of one lane, one way, only those words are sent that differ from the one before: a message like
// the last one has none, a call like the last one has one, with its number. Both ends take them in the order of puts.
class Preambles {
 public:
  void encode(const Preamble& preamble, Header* header) {
    header->preamble = Header::kPreamble;
    size_t sent = 0;
    for (size_t w = 0; w < 3; ++w) {
      if (preamble.words[w] == last_.words[w]) continue;
      header->preamble |= static_cast<uint8_t>(1u << w);
      std::memcpy(header->words + 2 * sent++, &preamble.words[w], 8);
    }
    last_ = preamble;
  }
  // `words`: Header::preamble; `preamble`: what was sent of it, to be completed.
  void decode(uint8_t words, Preamble* preamble) {
    size_t sent = Header::sent_words(words);
    for (size_t w = 3; w-- > 0;) {
      preamble->words[w] = (words >> w & 1) != 0 ? preamble->words[--sent] : last_.words[w];
    }
    last_ = *preamble;
  }

 private:
  Preamble last_;
};

}  // namespace ringfold::transport::ucx
