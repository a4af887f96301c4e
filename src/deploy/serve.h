// An HTTP server for one model. See api.h for what it answers.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "ringfold/status.h"
#include "train/predictor.h"

namespace ringfold::deploy {

struct ServeOptions {
  std::string address = "127.0.0.1:8000";  // numeric, or localhost; "[::1]:8000"; port 0: one that is free
  std::string key;                         // if not empty, requests say "Authorization: Bearer KEY"
  bool open = false;  // serve other hosts without a key; otherwise an address that is not this host's own needs one
  size_t max_body_bytes = size_t{1} << 20;
  double timeout_s = 10;        // for a request to arrive, and for its reply to be taken
  int threads = 1;              // that compute
  size_t max_connections = 64;  // beyond these, and with as many requests waiting for a thread, 503
};

// Serves until SIGTERM or SIGINT: then it accepts nothing more, ends idle connections, answers what it has begun
// (text that is not done with 503) and returns ok, after 5 seconds at the latest. `ready` is called once with the
// URL, when connections are accepted. Blocks; one at a time in a process. kInvalid: the options; kIo: the address
// cannot be had.
Status serve(const train::Predictor& predictor, const ServeOptions& options,
             const std::function<void(const std::string& url)>& ready);

// The file's first line. kDenied when others than its owner may read it; kInvalid when it has fewer than 16 bytes.
Result<std::string> read_key(const std::string& path);

}  // namespace ringfold::deploy
