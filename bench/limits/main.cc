// limits: what this machine, or a link, can do at most. tools/compare runs it beside the libraries.
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "bench/limits/figures.h"

namespace {

constexpr const char* kUsage =
    "Usage: limits [--json]                               memory, shared words, TCP over loopback\n"
    "       limits serve ADDRESS PORT                     one end of a link: waits for the other\n"
    "       limits [--json] reach ADDRESS PORT [SECONDS]  the other end: latency and the rate of one stream\n";

void print(const ringfold::limits::Figures& figures, bool json) {
  if (!json) {
    for (const auto& f : figures) fmt::print("{:<56}{:>10.3f} {}\n", f.name, f.value, f.unit);
    return;
  }
  std::string list;
  for (const auto& f : figures) {
    list += fmt::format("{}\n {{\"name\": \"{}\", \"value\": {:.6g}, \"unit\": \"{}\"}}", list.empty() ? "" : ",",
                        f.name, f.value, f.unit);
  }
  fmt::print("[{}\n]\n", list);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace ringfold::limits;
  std::vector<std::string> words(argv + 1, argv + argc);
  const bool json = !words.empty() && words[0] == "--json";
  if (json) words.erase(words.begin());
  Figures figures;
  int status = 0;
  if (words.empty()) {
    add_memory(&figures);
    add_exchange(&figures);
    add_sockets(&figures);
  } else if (words[0] == "serve" && words.size() == 3) {
    return serve(words[1], std::atoi(words[2].c_str()));
  } else if (words[0] == "reach" && (words.size() == 3 || words.size() == 4)) {
    const double seconds = words.size() == 4 ? std::atof(words[3].c_str()) : 1;
    status = reach(words[1], std::atoi(words[2].c_str()), seconds, &figures);
  } else {
    std::fputs(kUsage, stderr);
    return 2;
  }
  if (status == 0) print(figures, json);
  return status;
}
