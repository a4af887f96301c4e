#include "tools/cli/report/run_log.h"

#include <fmt/format.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace ringfold::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string words(const Json& value) {
  if (value.is_array()) {
    std::string all;
    for (const auto& each : value) all += (all.empty() ? "" : ", ") + words(each);
    return all;
  }
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) return fmt::format("{:.5g}", value.get<double>());
  return value.dump();
}

RunLog::Facts facts(const Json& event) {
  RunLog::Facts all;
  for (const auto& [name, value] : event.items()) {
    const bool plain = !value.is_structured() || name == "layers_of_stages";
    if (name != "event" && plain) all.emplace_back(name, words(value));
  }
  return all;
}

std::optional<double> optional_number(const Json& event, const char* name) {
  const auto found = event.find(name);
  return found != event.end() && found->is_number() ? std::optional(found->get<double>()) : std::nullopt;
}

// A number that JSON has none for (a loss that became infinite) is null in the log.
double number(const Json& event, const char* name) {
  return event.at(name).is_null() ? std::nan("") : event.at(name).get<double>();
}

// Throws where a field is missing or of another kind.
void take(const Json& event, RunLog* log) {
  const auto kind = event.at("event").get<std::string>();
  if (kind == "start") {
    log->start = facts(event);
  } else if (kind == "step") {
    log->steps.push_back({event.at("step").get<size_t>(), number(event, "loss"), number(event, "lr"),
                          number(event, "samples_per_s"), number(event, "comm_share")});
  } else if (kind == "epoch") {
    log->tests.push_back({log->steps.empty() ? 0 : log->steps.back().step, event.at("epoch").get<double>(),
                          optional_number(event, "test_loss"), optional_number(event, "test_accuracy")});
  } else if (kind == "test") {
    log->tests.push_back({event.at("step").get<size_t>(), event.at("epochs").get<double>(),
                          optional_number(event, "test_loss"), optional_number(event, "test_accuracy")});
  } else if (kind == "times") {
    RunLog::Times times{event.at("step").get<size_t>(), event.at("steps").get<size_t>(),
                        event.at("compute_s").get<std::vector<double>>(),
                        event.at("exposed_s").get<std::vector<double>>()};
    if (times.compute_s.size() != times.exposed_s.size() || times.compute_s.empty() || times.steps == 0)
      throw std::invalid_argument("times of no steps, or not of the same ranks");
    log->times.push_back(std::move(times));
  } else if (kind == "decision") {
    log->decisions.push_back({event.at("step").get<size_t>(), event.at("seen").get<std::string>(),
                              event.at("changed").get<std::string>(), event.value("outcome", std::string())});
  } else if (kind == "timeline") {
    RunLog::Timeline timeline{event.at("step_s").get<double>(), event.at("idle").get<double>(), {}};
    for (const auto& s : event.at("spans")) {
      timeline.spans.push_back({s.at(0).get<int>(), s.at(1).get<std::string>(), s.at(2).get<int>(),
                                s.at(3).get<int>(), s.at(4).get<double>(), s.at(5).get<double>()});
      if (timeline.spans.back().rank < 0 || timeline.spans.back().rank > 65535)
        throw std::invalid_argument("a span of no rank");
    }
    log->timeline = std::move(timeline);
  } else if (kind == "end") {
    log->end = facts(event);
  } else if (kind == "error") {
    log->error = event.at("message").get<std::string>();
  }  // a later version may know more
}

}  // namespace

std::string RunLog::fact(const std::string& name) const {
  for (const Facts* facts : {&end, &start}) {
    for (const auto& [key, value] : *facts) {
      if (key == name) return value;
    }
  }
  return {};
}

Result<RunLog> read_run_log(const std::string& path) {
  std::ifstream file(path);
  if (!file) return Status(Code::kIo, fmt::format("cannot read {}: {}", path, std::strerror(errno)));
  RunLog log;
  std::string line;
  size_t at = 0;
  while (std::getline(file, line)) {
    ++at;
    if (line.empty()) continue;
    try {
      take(Json::parse(line), &log);
    } catch (const std::exception& error) {
      if (file.eof()) {  // no line end: whoever wrote it was stopped here
        log.cut = true;
        break;
      }
      return Status(Code::kInvalid,
                    fmt::format("{}:{} is no line of a run's log, as `ringfold train --json` writes it: {}", path, at,
                                error.what()));
    }
  }
  if (file.bad()) return Status(Code::kIo, fmt::format("cannot read {}: {}", path, std::strerror(errno)));
  if (log.start.empty()) {
    return Status(Code::kInvalid,
                  fmt::format("{} has no \"start\" event: it is no log of `ringfold train --json`", path));
  }
  return log;
}

}  // namespace ringfold::cli
