#include "ringfold/status.h"

#include <fmt/format.h>

#include <array>

namespace ringfold {

std::string_view name_of(Code code) {
  constexpr std::array<std::string_view, 11> kNames = {"ok",          "invalid argument", "mismatch", "timeout",
                                                       "peer lost",   "aborted",          "unavailable", "denied",
                                                       "protocol error", "I/O error",     "internal error"};
  return kNames[static_cast<size_t>(code)];
}

std::string Verdict::to_string() const {
  std::string text = rank >= 0 ? fmt::format("rank {}", rank) : std::string("no rank");
  if (!host.empty()) text += fmt::format(" on {}", host);
  text += ": " + cause;
  if (!operation.empty()) text += fmt::format(" (in {} #{}, epoch {})", operation, sequence, epoch);
  return text;
}

struct Status::Rep {
  Code code;
  std::string message;
  std::optional<Verdict> verdict;
};

Status::Status(Code code, std::string message) {
  if (code != Code::kOk) rep_ = std::make_shared<const Rep>(Rep{code, std::move(message), std::nullopt});
}

Status::Status(Verdict verdict) {
  auto text = verdict.to_string();
  auto code = verdict.code == Code::kOk ? Code::kAborted : verdict.code;
  rep_ = std::make_shared<const Rep>(Rep{code, std::move(text), std::move(verdict)});
}

Code Status::code() const { return rep_ ? rep_->code : Code::kOk; }

const std::string& Status::message() const {
  static const std::string kNone;
  return rep_ ? rep_->message : kNone;
}

const Verdict* Status::verdict() const { return rep_ && rep_->verdict ? &*rep_->verdict : nullptr; }

std::string Status::to_string() const {
  return ok() ? std::string("ok") : fmt::format("{}: {}", name_of(code()), message());
}

}  // namespace ringfold
