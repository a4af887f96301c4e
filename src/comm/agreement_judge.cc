// Who is to blame. One function per kind of evidence, strongest first.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "comm/agreement_report.h"
#include "comm/text.h"

namespace ringfold::comm {
namespace {

using Reports = std::map<int, Report>;

struct Finding {
  int rank = -1;
  Code code = Code::kAborted;
  std::string cause;
  std::string operation;
  uint64_t sequence = 0;
};

// Messages have no numbers; their text says more.
bool is_message(const Standing& at) { return at.operation() == "send" || at.operation() == "receive"; }
std::string name_of(const Standing& at) {
  return is_message(at) ? at.call : fmt::format("{} #{}", at.operation(), at.sequence);
}

// The call in which the ranks were: the earliest that somebody has not returned from.
Standing current_call(const Reports& reports) {
  Standing result;
  for (const auto& [rank, report] : reports) {
    const auto& at = report.standing;
    if (at.inside && (!result.inside || at.sequence < result.sequence)) result = at;
  }
  return result;
}

Finding at_call(int rank, Code code, std::string cause, const Standing& at) {
  return {rank, code, std::move(cause), at.operation(), at.sequence};
}

std::optional<Finding> by_contract(const Reports& reports) {
  std::map<uint64_t, std::map<int, Made>> calls;  // by sequence and rank
  for (const auto& [rank, report] : reports) {
    const auto& at = report.standing;
    for (const Made& made : at.recent) calls[made.sequence].emplace(rank, made);
    if (at.sequence > 0) calls[at.sequence].emplace(rank, Made{at.sequence, at.contract, at.call});
  }
  for (const auto& [sequence, made] : calls) {
    std::map<std::array<uint8_t, 24>, std::vector<int>> groups;
    for (const auto& [rank, call] : made) groups[call.contract].push_back(rank);
    if (groups.size() < 2) continue;
    std::vector<std::vector<int>> by_size;
    for (auto& [contract, ranks] : groups) by_size.push_back(ranks);
    std::sort(by_size.begin(), by_size.end(), [](const auto& a, const auto& b) {
      return a.size() != b.size() ? a.size() > b.size() : a.front() < b.front();
    });
    // What most ranks called is the reference; of the others the smallest group, and its lowest rank, stands out.
    const auto& reference = by_size.front();
    const auto smallest = std::min_element(by_size.begin() + 1, by_size.end(),
                                           [](const auto& a, const auto& b) { return a.size() < b.size(); });
    const int culprit = smallest->front();
    const Made &theirs = made.at(culprit), &expected = made.at(reference.front());
    const auto whom = fmt::format("rank{} {}", reference.size() == 1 ? "" : "s", join(reference, ","));
    return Finding{
        culprit, Code::kMismatch,
        theirs.call == expected.call
            ? fmt::format("called {} with other settings than {} (algorithm, codec, sizes of blocks, scale or tile "
                          "size differ)",
                          theirs.call, whom)
            : fmt::format("called {} where {} called {}", theirs.call, whom, expected.call),
        expected.call.substr(0, expected.call.find(' ')), sequence};
  }
  return std::nullopt;
}

std::optional<Finding> by_accusation(const Reports& reports) {
  std::map<int, int> involved;
  std::map<int, std::pair<int, std::string>> accusers;  // by either side of an accusation: who made it, and its text
  for (const auto& [rank, report] : reports) {
    for (const auto& [peer, cause] : report.evidence.mismatches) {
      ++involved[rank];
      ++involved[peer];
      accusers.try_emplace(peer, rank, cause);
    }
  }
  for (const auto& [rank, report] : reports) {
    for (const auto& [peer, cause] : report.evidence.mismatches) accusers.try_emplace(rank, rank, cause);
  }
  if (involved.empty()) return std::nullopt;
  int culprit = -1, most = 0;
  for (const auto& [rank, count] : involved) {
    if (count >= most) culprit = rank, most = count;  // a tie: not the lowest rank
  }
  std::string cause = "its call does not belong to that of the others";
  auto at = current_call(reports);
  if (auto it = accusers.find(culprit); it != accusers.end()) {
    cause = it->second.second;
    at = reports.at(it->second.first).standing;
  }
  return at_call(culprit, Code::kMismatch, cause, at);
}

// What the lowest rank that has lost its link to `rank` says of it.
std::optional<Finding> lost_link(const Reports& reports, int rank) {
  for (const auto& [from, report] : reports) {
    const auto it = report.evidence.broken_links.find(rank);
    if (it == report.evidence.broken_links.end()) continue;
    return at_call(rank, it->second.code, fmt::format("rank {} lost its link to it: {}", from, it->second.cause),
                   current_call(reports));
  }
  return std::nullopt;
}

std::optional<Finding> by_loss(const Reports& reports, const std::map<int, Suspicion>& suspects, bool silent) {
  for (const auto& [rank, suspicion] : suspects) {
    if (suspicion.silent != silent) continue;
    if (auto finding = lost_link(reports, rank); silent && finding) return finding;
    return at_call(rank, suspicion.code, suspicion.cause, current_call(reports));
  }
  return std::nullopt;
}

std::optional<Finding> by_link(const Reports& reports) {
  std::map<int, int> ends;
  for (const auto& [rank, report] : reports) {
    for (const auto& [peer, loss] : report.evidence.broken_links) ++ends[rank], ++ends[peer];
  }
  std::optional<Finding> worst;
  int most = 0;
  for (const auto& [rank, count] : ends) {
    if (count <= most) continue;
    if (auto finding = lost_link(reports, rank)) worst = std::move(finding), most = count;
  }
  return worst;
}

// Where the chain of who waits for whom ends. nullopt: `start` waits for nobody.
std::optional<Finding> by_chain(const Reports& reports, int start) {
  const auto& first = reports.at(start).standing;
  std::vector<int> chain = {start};
  for (;;) {
    auto it = reports.find(chain.back());
    const int next = it == reports.end() || !it->second.standing.inside ? -1 : it->second.standing.waits_for;
    if (next < 0) break;
    if (auto seen = std::find(chain.begin(), chain.end(), next); seen != chain.end()) {
      return at_call(-1, Code::kTimeout,
                     fmt::format("ranks {} wait for each other in {}", join(seen, chain.end(), ","), name_of(first)),
                     first);
    }
    chain.push_back(next);
  }
  if (chain.size() == 1) return std::nullopt;
  const int end = chain.back(), before = chain[chain.size() - 2];
  auto it = reports.find(end);
  const bool inside = it != reports.end() && it->second.standing.inside;
  if (it != reports.end() && !it->second.stands) {
    return at_call(end, Code::kTimeout,
                   fmt::format("is busy and does not say where, while rank {} waits for it in {}", before,
                               name_of(reports.at(before).standing)),
                   first);
  }
  return at_call(end, Code::kTimeout,
                 inside ? fmt::format("is in {} and waits for nobody, while rank {} waits for it",
                                      name_of(it->second.standing), before)
                        : fmt::format("is in no call, while rank {} waits for it in {}", before,
                                      name_of(reports.at(before).standing)),
                 first);
}

std::optional<Finding> by_timeout(const Reports& reports) {
  std::vector<int> waiting;  // whose deadline passed
  for (const auto& [rank, report] : reports) {
    if (report.evidence.timeout) waiting.push_back(rank);
  }
  if (waiting.empty()) return std::nullopt;
  std::stable_sort(waiting.begin(), waiting.end(),
                   [&](int a, int b) { return reports.at(a).standing.sequence < reports.at(b).standing.sequence; });
  const auto& call = reports.at(waiting.front()).standing;

  // The rank that is furthest behind: it has not returned from, or not even made, the lowest numbered call. Being
  // outside of a call and behind needs no other explanation; being inside, it may itself wait for somebody.
  auto next_call = [](const Standing& at) { return at.sequence + (at.inside ? 0 : 1); };
  int last = -1;
  for (const auto& [rank, report] : reports) {
    const auto& at = report.standing;
    if (!report.stands) continue;
    if (next_call(at) > call.sequence || (at.inside && at.sequence == call.sequence)) continue;
    if (last < 0 || next_call(at) < next_call(reports.at(last).standing)) last = rank;
  }
  if (last >= 0) {
    const auto& at = reports.at(last).standing;
    if (at.inside) {
      if (auto finding = by_chain(reports, last)) return finding;
      return at_call(last, Code::kTimeout,
                     fmt::format("is still in {}, the others wait in {}", name_of(at), name_of(call)), call);
    }
    return at_call(last, Code::kTimeout,
                   fmt::format("has not called {}; {}", name_of(call),
                               at.sequence == 0 ? "it has made no call yet" : "its last call was " + name_of(at)),
                   call);
  }
  for (int rank : waiting) {
    if (auto finding = by_chain(reports, rank)) return finding;
  }
  return at_call(-1, Code::kTimeout, *reports.at(waiting.front()).evidence.timeout, call);
}

std::optional<Finding> by_request(const Reports& reports) {
  for (const auto& [rank, report] : reports) {
    if (report.evidence.abort) {
      return at_call(rank, Code::kAborted, "asked to abort: " + *report.evidence.abort, current_call(reports));
    }
  }
  return std::nullopt;
}

}  // namespace

Verdict judge(const Reports& reports, const std::map<int, Suspicion>& suspects, const std::vector<std::string>& hosts,
              uint32_t epoch) {
  auto finding = by_contract(reports);
  if (!finding) finding = by_accusation(reports);
  if (!finding) finding = by_loss(reports, suspects, false);
  if (!finding) finding = by_loss(reports, suspects, true);
  if (!finding) finding = by_link(reports);
  if (!finding) finding = by_timeout(reports);
  if (!finding) finding = by_request(reports);
  if (!finding) finding = at_call(-1, Code::kAborted, "no cause was reported", current_call(reports));
  Verdict verdict;
  verdict.rank = finding->rank;
  if (finding->rank >= 0) verdict.host = hosts[finding->rank];
  verdict.operation = finding->operation;
  verdict.sequence = finding->operation.empty() ? 0 : finding->sequence;
  verdict.epoch = epoch;
  verdict.code = finding->code;
  verdict.cause = finding->cause;
  return verdict;
}

}  // namespace ringfold::comm
