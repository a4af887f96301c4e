// What a served model answers: requests of HTTP as values, without sockets.
//
//   GET  /health    {"status": "ok"}
//   GET  /model     what the model is, was trained on and reached, and the SHA-256 of its file
//   POST /predict   {"images": [[784 grey values from 0 to 255, or 28 rows of 28], ...]}
//                     -> {"predictions": [{"class": 9, "name": "ankle boot", "probabilities": [ten]}, ...]}
//                   {"text": "...", "bytes": 100, "temperature": 0, "seed": 1}, of which only "text" must be there
//                     -> {"text": "what follows"}; bytes that are no UTF-8 come as U+FFFD
//
// Every error is {"error": "what is wrong"} with a status that says whose fault it is.
#pragma once

#include <atomic>
#include <string>
#include <string_view>

#include "train/predictor.h"

namespace ringfold::deploy {

struct Reply {
  unsigned status = 200;
  std::string body;   // JSON
  std::string allow;  // with 405: the method that the target takes
};
Reply error_reply(unsigned status, std::string_view message);

inline constexpr size_t kMostBytesMade = 4096;  // of one answer

// Threads: any. Once `stop` is set, long answers end with 503.
Reply answer(const train::Predictor& predictor, std::string_view method, std::string_view target,
             std::string_view body, const std::atomic<bool>& stop);
// Of the reply to a request whose body need not be read, as no body could change it: 404, 405. Else status 200.
Reply refuse_early(std::string_view method, std::string_view target);

}  // namespace ringfold::deploy
