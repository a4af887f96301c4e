#include "comm/agreement_report.h"

#include <algorithm>

#include "comm/wire.h"

namespace ringfold::comm {
namespace {

enum Kind : uint8_t { kReport = 1, kDecide = 2 };
constexpr size_t kMaxText = 1024;

std::string_view cut(std::string_view text) { return text.substr(0, kMaxText); }

void write(Writer& out, const Issued& issued) {
  const auto& v = issued.decision.verdict;
  out.number(issued.leader)
      .number(v.rank)
      .text(cut(v.host))
      .text(cut(v.operation))
      .number(v.sequence)
      .number(v.epoch);
  out.number(static_cast<uint8_t>(v.code)).text(cut(v.cause));
  out.number(static_cast<uint32_t>(issued.decision.survivors.size()));
  for (int rank : issued.decision.survivors) out.number(rank);
}

// Reads fields that must lie in a range; one that does not spoils the whole message.
class Checked {
 public:
  Checked(std::string_view bytes, int size) : in_(bytes), size_(size) {}
  int rank(int least = 0) {
    const int value = in_.number<int>();
    good_ = good_ && value >= least && value < size_;
    return value;
  }
  Code code() {
    const auto value = in_.number<uint8_t>();
    good_ = good_ && value > 0 && value <= static_cast<uint8_t>(Code::kInternal);
    return static_cast<Code>(value);
  }
  bool flag() {
    const auto value = in_.number<uint8_t>();
    good_ = good_ && value <= 1;
    return value == 1;
  }
  int count() { return count(size_); }
  int count(int most) {
    const auto value = in_.number<uint32_t>();
    good_ = good_ && value <= static_cast<uint32_t>(most);
    return ok() ? static_cast<int>(value) : 0;
  }
  std::string text() { return std::string(in_.text(kMaxText)); }
  template <typename T>
  T number() {
    return in_.number<T>();
  }
  std::string_view bytes(size_t n) { return in_.bytes(n); }
  bool ok() const { return good_ && in_.ok(); }
  bool done() const { return good_ && in_.done(); }

  Issued issued() {
    Issued result;
    result.leader = rank();
    auto& v = result.decision.verdict;
    v.rank = rank(-1);
    v.host = text();
    v.operation = text();
    v.sequence = number<uint64_t>();
    v.epoch = number<uint32_t>();
    v.code = code();
    v.cause = text();
    int last = -1;
    for (int n = count(); n > 0 && ok(); --n) {
      result.decision.survivors.push_back(rank());
      good_ = good_ && result.decision.survivors.back() > last;
      last = result.decision.survivors.back();
    }
    return result;
  }

 private:
  Reader in_;
  int size_;
  bool good_ = true;
};

}  // namespace

std::string encode(const Report& report, uint32_t epoch) {
  Writer out;
  out.number(uint8_t{kReport}).number(epoch);
  out.number(static_cast<uint32_t>(report.suspects.size()));
  for (const auto& [rank, s] : report.suspects) {
    out.number(rank).number(uint8_t{s.silent}).number(static_cast<uint8_t>(s.code)).text(cut(s.cause));
  }
  const auto& at = report.standing;
  out.number(uint8_t{report.stands})
      .number(at.sequence)
      .number(uint8_t{at.inside})
      .text(cut(at.call))
      .number(at.waits_for);
  out.bytes({reinterpret_cast<const char*>(at.contract.data()), at.contract.size()});
  const size_t skipped = at.recent.size() - std::min<size_t>(at.recent.size(), kMostMade);
  out.number(static_cast<uint32_t>(at.recent.size() - skipped));
  for (size_t i = skipped; i < at.recent.size(); ++i) {
    const Made& made = at.recent[i];
    out.number(made.sequence).bytes({reinterpret_cast<const char*>(made.contract.data()), made.contract.size()});
    out.text(cut(made.call));
  }
  for (const auto* text : {&report.evidence.timeout, &report.evidence.abort}) {
    out.number(uint8_t{text->has_value()}).text(cut(text->value_or("")));
  }
  out.number(static_cast<uint32_t>(report.evidence.mismatches.size()));
  for (const auto& [rank, cause] : report.evidence.mismatches) out.number(rank).text(cut(cause));
  out.number(static_cast<uint32_t>(report.evidence.broken_links.size()));
  for (const auto& [rank, loss] : report.evidence.broken_links) {
    out.number(rank).number(static_cast<uint8_t>(loss.code)).text(cut(loss.cause));
  }
  out.number(uint8_t{report.accepted.has_value()});
  if (report.accepted) write(out, *report.accepted);
  return out.take();
}

std::string encode(const Issued& issued, uint32_t epoch) {
  Writer out;
  out.number(uint8_t{kDecide}).number(epoch);
  write(out, issued);
  return out.take();
}

std::optional<Decoded> decode(std::string_view bytes, int size) {
  Checked in(bytes, size);
  Decoded result;
  const auto kind = in.number<uint8_t>();
  result.epoch = in.number<uint32_t>();
  if (kind == kDecide) {
    result.issued = in.issued();
  } else if (kind == kReport) {
    auto& report = result.report.emplace();
    for (int n = in.count(); n > 0 && in.ok(); --n) {
      const int rank = in.rank();
      const bool silent = in.flag();
      const Code code = in.code();
      report.suspects[rank] = {silent, code, in.text()};
    }
    report.stands = in.flag();
    auto& at = report.standing;
    at.sequence = in.number<uint64_t>();
    at.inside = in.flag();
    at.call = in.text();
    at.waits_for = in.rank(-1);
    const auto contract = in.bytes(at.contract.size());
    std::copy(contract.begin(), contract.end(), at.contract.begin());
    for (int n = in.count(kMostMade); n > 0 && in.ok(); --n) {
      Made& made = at.recent.emplace_back();
      made.sequence = in.number<uint64_t>();
      const auto word = in.bytes(made.contract.size());
      std::copy(word.begin(), word.end(), made.contract.begin());
      made.call = in.text();
    }
    for (auto* text : {&report.evidence.timeout, &report.evidence.abort}) {
      const bool given = in.flag();
      auto value = in.text();
      if (given) *text = std::move(value);
    }
    for (int n = in.count(); n > 0 && in.ok(); --n) {
      const int rank = in.rank();
      report.evidence.mismatches[rank] = in.text();
    }
    for (int n = in.count(); n > 0 && in.ok(); --n) {
      const int rank = in.rank();
      const Code code = in.code();
      report.evidence.broken_links[rank] = {code, in.text()};
    }
    if (in.flag()) report.accepted = in.issued();
  } else {
    return std::nullopt;
  }
  if (!in.done()) return std::nullopt;
  return result;
}

}  // namespace ringfold::comm
