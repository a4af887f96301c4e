#include "schedule/print.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "schedule/walk.h"

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

// When and where each message, local step and event of a schedule happens, in units of one message's latency. Each
// further message of a lane begins or ends a little after the one before, so that arrows do not lie on each other.
class Timeline {
 public:
  struct Point {
    uint32_t actor = 0;
    double time = 0;
  };
  struct Mark {  // of a message, copy or reduce (from = to), or signal and wait
    Point from, to;
    Step step;  // the receiving one
    Span cells;
  };

  explicit Timeline(const Walk& walk) : walk_(walk), now_(walk.actors(), 0.0), signals_(walk.events().size()) {}

  bool send(Walk::Site site, const Step&, uint32_t link) {
    sent_.resize(walk_.links().size());
    sent_[link] = {site.actor, now_[site.actor]};
    now_[site.actor] += kGap;
    return true;
  }
  bool receive(Walk::Site site, const Step& step, uint32_t link) {
    double& now = now_[site.actor];
    now = std::max(now, sent_[link].time + 1);
    add(messages, sent_[link], {site.actor, now}, step, walk_.links()[link].cells);
    now += kGap;
    return true;
  }
  bool local(Walk::Site site, const Step& step) {
    const Point here{site.actor, now_[site.actor]};
    add(locals, here, here, step, {step.chunk, step.count});
    now_[site.actor] += kGap;
    return true;
  }
  bool signal(Walk::Site site, uint32_t event) {
    signals_[event].push_back({site.actor, now_[site.actor]});
    return true;
  }
  bool wait(Walk::Site site, uint32_t event) {
    const Point from = signals_[event][walk_.events()[event].waits];
    double& now = now_[site.actor];
    now = std::max(now, from.time);
    add(events, from, {site.actor, now}, {.kind = StepKind::kWait}, {});
    return true;
  }

  std::vector<Mark> messages, locals, events;
  double end = 0;

 private:
  static constexpr double kGap = 0.16;
  void add(std::vector<Mark>& marks, Point from, Point to, const Step& step, Span cells) {
    marks.push_back({from, to, step, cells});
    end = std::max(end, to.time);
  }

  const Walk& walk_;
  std::vector<double> now_;  // by actor
  std::vector<Point> sent_;  // by link: the message in its slot
  std::vector<std::vector<Point>> signals_;
};

// A small SVG writer: what the picture needs and no more.
class Svg {
 public:
  Svg(double width, double height) {
    put("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\" "
        "font-family=\"Helvetica, Arial, sans-serif\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
        width, height, width, height);
  }
  void line(double x1, double y1, double x2, double y2, const char* style) {
    put("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s/>\n", x1, y1, x2, y2, style);
  }
  void circle(double x, double y, double r, const char* style) {
    put("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" %s/>\n", x, y, r, style);
  }
  void rect(double x, double y, double width, double height, const char* style) {
    put("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" %s/>\n", x, y, width, height, style);
  }
  void head(double x, double y, double dx, double dy, const char* style) {  // an arrow's head at x, y
    put("<path d=\"M%.1f %.1f L%.1f %.1f L%.1f %.1f Z\" %s/>\n", x, y, x - 8 * dx - 3.2 * dy, y - 8 * dy + 3.2 * dx,
        x - 8 * dx + 3.2 * dy, y - 8 * dy - 3.2 * dx, style);
  }
  void text(double x, double y, const std::string& what, const char* style) {
    put("<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", x, y, style, what.c_str());
  }
  std::string take() { return std::move(out_) + "</svg>\n"; }

 private:
  template <typename... Args>
  void put(const char* format, Args... args) {
    char buffer[768];
    std::snprintf(buffer, sizeof(buffer), format, args...);
    out_ += buffer;
  }
  std::string out_;
};

// Neighbouring chunks get hues far apart (the golden angle), at three lightnesses.
std::string colour_of(uint32_t chunk) {
  char buffer[48];
  const double hue = std::fmod(205.0 + chunk * 137.508, 360.0) / 60.0;
  const double light = 0.42 - 0.06 * (chunk % 3), chroma = 0.72 * 2 * light;
  const double low = light - chroma / 2;
  const double x = chroma * (1 - std::fabs(std::fmod(hue, 2.0) - 1));
  const double rgb[6][3] = {{chroma, x, 0}, {x, chroma, 0}, {0, chroma, x},
                            {0, x, chroma}, {x, 0, chroma}, {chroma, 0, x}};
  const auto& c = rgb[static_cast<int>(hue) % 6];
  std::snprintf(buffer, sizeof(buffer), "#%02x%02x%02x", static_cast<int>(255 * (c[0] + low)),
                static_cast<int>(255 * (c[1] + low)), static_cast<int>(255 * (c[2] + low)));
  return buffer;
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

Result<std::string> picture_of(const Schedule& schedule) {
  constexpr int kMostRanks = 32;
  const int n = schedule.shape.ranks;
  if (n > kMostRanks)
    return Status(Code::kInvalid, "a picture shows at most " + std::to_string(kMostRanks) + " ranks");
  Walk walk(schedule);
  Fault fault = walk.load();
  Timeline timeline(walk);
  if (!fault) fault = walk.run(timeline);
  if (fault) return Status(Code::kInvalid, "the schedule does not run to its end: " + fault.what);

  constexpr double kLeft = 58, kTop = 96, kUnit = 88, kLaneGap = 34;
  const double column = std::max(104.0, kLaneGap * schedule.lanes + 40);
  const double width = std::max(440.0, kLeft + column * n + 20);
  const double bottom = kTop + timeline.end * kUnit + 34;
  Svg svg(width, bottom + 44);
  const auto x_of = [&](uint32_t actor) {
    const int lane = static_cast<int>(actor) % schedule.lanes;
    return kLeft + column * (walk.rank_of(actor) + 0.5) + kLaneGap * (lane - (schedule.lanes - 1) / 2.0);
  };
  const auto y_of = [&](double time) { return kTop + time * kUnit; };

  svg.text(20, 32, title_of(schedule), "font-size=\"17\" font-weight=\"bold\" fill=\"#1d2733\"");
  for (int t = 0; t <= static_cast<int>(timeline.end + 0.01); ++t) {
    svg.line(kLeft - 12, y_of(t), width - 20, y_of(t), "stroke=\"#e6eaee\"");
    svg.text(kLeft - 20, y_of(t) + 4, std::to_string(t), "font-size=\"11\" fill=\"#8a97a5\" text-anchor=\"end\"");
  }
  for (int rank = 0; rank < n; ++rank) {
    const double x = kLeft + column * rank;
    svg.rect(x + 6, 50, column - 12, bottom - 50, "rx=\"8\" fill=\"#6b7f94\" fill-opacity=\"0.07\"");
    svg.text(x + column / 2, 70, "rank " + std::to_string(rank),
             "font-size=\"13\" font-weight=\"bold\" fill=\"#1d2733\" text-anchor=\"middle\"");
    for (int lane = 0; lane < schedule.lanes; ++lane) {
      const double lane_x = x_of(static_cast<uint32_t>(rank * schedule.lanes + lane));
      svg.line(lane_x, kTop - 8, lane_x, bottom - 10, "stroke=\"#b6c1cc\" stroke-width=\"1.5\"");
      if (schedule.lanes == 1) continue;
      svg.text(lane_x, kTop - 12, "lane " + std::to_string(lane),
               "font-size=\"9\" fill=\"#8a97a5\" text-anchor=\"middle\"");
    }
  }
  for (const auto& mark : timeline.events) {
    svg.line(x_of(mark.from.actor), y_of(mark.from.time), x_of(mark.to.actor), y_of(mark.to.time),
             "stroke=\"#1d2733\" stroke-width=\"1.6\" stroke-dasharray=\"3 3\"");
    svg.circle(x_of(mark.from.actor), y_of(mark.from.time), 2.5, "fill=\"#1d2733\"");
    svg.circle(x_of(mark.to.actor), y_of(mark.to.time), 2.5, "fill=\"#1d2733\"");
  }
  // How a step's effect looks at (x, y): received, folded, complete.
  const auto effect = [&](double x, double y, const Step& step, const std::string& colour, bool square) {
    const bool folds = step.kind == StepKind::kRecvReduce || step.kind == StepKind::kReduce;
    const std::string style =
        "fill=\"" + (folds ? "#ffffff" : colour) + "\" stroke=\"" + colour + "\" stroke-width=\"1.8\"";
    if (step.flags & kComplete) svg.circle(x, y, 9, ("fill=\"#ffffff\" stroke=\"" + colour + "\"").c_str());
    square ? svg.rect(x - 5, y - 5, 10, 10, style.c_str()) : svg.circle(x, y, folds ? 5.5 : 4.5, style.c_str());
    if (!folds) return;
    const std::string stroke = "stroke=\"" + colour + "\" stroke-width=\"1.8\"";
    svg.line(x - 3, y, x + 3, y, stroke.c_str());
    svg.line(x, y - 3, x, y + 3, stroke.c_str());
  };
  const auto label_style = [](const std::string& colour) {
    return "font-size=\"11\" text-anchor=\"middle\" fill=\"" + colour +
           "\" stroke=\"#ffffff\" stroke-width=\"3\" paint-order=\"stroke\"";
  };
  const auto chunk_of = [&](const Timeline::Mark& mark) {  // rather a chunk than a temporary at either end
    for (const uint32_t cell : {mark.cells.first, mark.step.chunk, mark.step.source}) {
      if (cell < schedule.chunks()) return cell;
    }
    return mark.cells.first;
  };
  struct Label {
    double x, y;
    std::string text, style;
  };
  std::vector<Label> labels;                // on top of all arrows
  std::vector<int> sent(walk.actors(), 0);  // labels of one sender at different distances
  for (const auto& mark : timeline.messages) {
    const std::string colour = colour_of(chunk_of(mark));
    const double x1 = x_of(mark.from.actor), y1 = y_of(mark.from.time);
    const double x2 = x_of(mark.to.actor), y2 = y_of(mark.to.time);
    const double length = std::hypot(x2 - x1, y2 - y1);
    const double dx = (x2 - x1) / length, dy = (y2 - y1) / length;
    const double gap = mark.step.flags & kComplete ? 10 : 6.5;
    svg.line(x1, y1, x2 - (gap + 6) * dx, y2 - (gap + 6) * dy,
             ("stroke=\"" + colour + "\" stroke-width=\"1.7\"").c_str());
    svg.head(x2 - gap * dx, y2 - gap * dy, dx, dy, ("fill=\"" + colour + "\"").c_str());
    svg.circle(x1, y1, 2.6, ("fill=\"" + colour + "\"").c_str());
    const double along = std::min(0.5 * length, 34.0 + 20.0 * sent[mark.from.actor]);
    sent[mark.from.actor] = (sent[mark.from.actor] + 1) % 3;
    labels.push_back({x1 + along * dx, y1 + along * dy + 3, cells(schedule, mark.cells.first, mark.cells.count),
                      label_style(colour)});
  }
  for (const auto& mark : timeline.locals) {
    const std::string colour = colour_of(chunk_of(mark));
    labels.push_back({x_of(mark.to.actor) + 20, y_of(mark.to.time) + 4,
                      cells(schedule, mark.cells.first, mark.cells.count), label_style(colour)});
  }
  for (const auto& mark : timeline.messages) {
    effect(x_of(mark.to.actor), y_of(mark.to.time), mark.step, colour_of(chunk_of(mark)), false);
  }
  for (const auto& mark : timeline.locals) {
    effect(x_of(mark.to.actor), y_of(mark.to.time), mark.step, colour_of(chunk_of(mark)), true);
  }
  for (const Label& label : labels) svg.text(label.x, label.y, label.text, label.style.c_str());

  const char* small = "font-size=\"11\" fill=\"#4a5866\"";
  const double y = bottom + 22;
  const std::string grey = "#4a5866";
  effect(28, y - 4, {.kind = StepKind::kRecv}, grey, false);
  svg.text(38, y, "received", small);
  effect(104, y - 4, {.kind = StepKind::kRecvReduce}, grey, false);
  svg.text(116, y, "folded", small);
  effect(172, y - 4, {.kind = StepKind::kRecvReduce, .flags = kComplete}, grey, false);
  svg.text(187, y, "complete", small);
  effect(256, y - 4, {.kind = StepKind::kCopy}, grey, true);
  svg.text(268, y, "local", small);
  svg.line(310, y - 4, 334, y - 4, "stroke=\"#1d2733\" stroke-width=\"1.6\" stroke-dasharray=\"3 3\"");
  svg.text(340, y, "event", small);
  return svg.take();
}

}  // namespace ringfold::schedule
