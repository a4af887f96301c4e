#include "schedule/print.h"

namespace ringfold::schedule {
namespace {

std::string cells(const Schedule& schedule, uint32_t first, uint32_t count) {
  const uint64_t chunks = schedule.chunks();
  const bool temporary = first >= chunks;
  const uint64_t base = temporary ? first - chunks : first;
  std::string text(temporary ? "t" : "c");
  text += std::to_string(base);
  if (count != 1) text += ".." + std::to_string(base + count - 1);
  return text;
}

}  // namespace

std::string text_of(const Schedule& schedule, const Step& step) {
  const auto line = [&](const char* kind, const char* arrow, const std::string& other) {
    std::string text = std::string(kind) + " " + cells(schedule, step.chunk, step.count) + arrow + other;
    if (step.flags & kPrepend) text += " prepend";
    if (step.flags & kComplete) text += " complete";
    return text;
  };
  const std::string peer = std::to_string(step.peer);
  switch (step.kind) {
    case StepKind::kSend: return line("send", " -> ", peer);
    case StepKind::kRecv: return line("recv", " <- ", peer);
    case StepKind::kRecvReduce: return line("recv_reduce", " <- ", peer);
    case StepKind::kCopy: return line("copy", " := ", cells(schedule, step.source, step.count));
    case StepKind::kReduce: return line("reduce", " += ", cells(schedule, step.source, step.count));
    case StepKind::kSignal: return "signal e" + std::to_string(step.source);
    case StepKind::kWait: return "wait e" + std::to_string(step.source);
  }
  return "?";
}

std::string title_of(const Schedule& schedule) {
  const auto counted = [](uint64_t count, const char* noun) {
    return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
  };
  std::string text(name_of(schedule.shape.collective));
  text += " " + schedule.algorithm + ": " + counted(static_cast<uint64_t>(schedule.shape.ranks), "rank");
  if (has_root(schedule.shape.collective)) text += ", root " + std::to_string(schedule.shape.root);
  return text + ", " + counted(static_cast<uint64_t>(schedule.lanes), "lane") + ", " +
         counted(schedule.chunks(), "chunk");
}

std::string text_of(const Schedule& schedule, int rank) {
  const RankSteps steps = schedule.rank(rank);
  std::string text;
  for (size_t l = 0; l < steps.lanes.size(); ++l) {
    text += "rank " + std::to_string(rank) + " lane " + std::to_string(l) + "\n";
    for (size_t i = 0; i < steps.lanes[l].size(); ++i) {
      const std::string number = std::to_string(i);
      text += std::string(number.size() < 4 ? 4 - number.size() : 0, ' ') + number + "  " +
              text_of(schedule, steps.lanes[l][i]) + "\n";
    }
  }
  return text;
}

}  // namespace ringfold::schedule
