#include "model/probe.h"

#include <algorithm>
#include <functional>

namespace ringfold::model {
namespace {

constexpr int kRepeats = 9;
// Round trips: no message larger than a tile, so that nothing overlaps. Ascending: a slow link drops the last ones.
constexpr uint64_t kSizes[] = {8, 512, 4096, 16384, 65536};
constexpr int kSmallCounts[] = {8, 64, 256};
constexpr int kLargeCounts[] = {4, 16, 48};
constexpr uint64_t kSmallBytes = 8;
constexpr uint64_t kLargeBytes = 65536;
constexpr uint64_t kCodedBytes = 262144;

double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

bool has_slope(const std::vector<Sample>& samples) {
  return std::any_of(samples.begin(), samples.end(), [&](const Sample& s) { return s.x != samples.front().x; });
}

// Repeats `measure` for each x while the allowance lasts, and adds what it took to `spent`.
template <typename X>
Status repeat(std::span<const X> xs, double allowance, double& spent, std::vector<Sample>& samples,
              const std::function<Result<double>(X)>& measure) {
  const double end = spent + allowance;
  for (const X x : xs) {
    for (int i = 0; i < kRepeats && spent < end; ++i) {
      const auto seconds = measure(x);
      if (!seconds.ok()) return seconds.status();
      spent += *seconds;
      samples.push_back({static_cast<double>(x), *seconds});
    }
  }
  return {};
}

}  // namespace

Line fit_line(std::vector<Sample> samples) {
  std::sort(samples.begin(), samples.end(), [](const Sample& a, const Sample& b) { return a.x < b.x; });
  double w = 0, wx = 0, wt = 0, wxx = 0, wxt = 0;
  for (size_t i = 0; i < samples.size();) {
    const double x = samples[i].x;
    std::vector<double> times;
    for (; i < samples.size() && samples[i].x == x; ++i) times.push_back(samples[i].seconds);
    const double t = std::max(median(times), 1e-12);
    const double weight = 1 / (t * t);  // squares the 1/t of the residual
    w += weight, wx += weight * x, wt += weight * t, wxx += weight * x * x, wxt += weight * x * t;
  }
  if (w == 0) return {};
  const double spread = w * wxx - wx * wx;
  if (spread <= 1e-12 * w * wxx) return {wt / w, 0};
  const Line line{(wxx * wt - wx * wxt) / spread, (w * wxt - wx * wt) / spread};
  if (line.slope < 0) return {wt / w, 0};
  if (line.fixed < 0) return {0, wxt / wxx};
  return line;
}

LinkFigures fit_link(LinkClass link_class, const LinkSamples& samples, double copy, const LinkFigures& known) {
  LinkFigures figures = known;
  if (has_slope(samples.small_stream)) figures.overhead = fit_line(samples.small_stream).slope;
  if (samples.round_trips.empty()) return figures;
  const Line trip = fit_line(samples.round_trips);
  // A message of a few bytes takes overhead, latency and overhead again.
  figures.overhead = std::min(figures.overhead, trip.fixed / 4);
  figures.latency = trip.fixed / 2 - 2 * figures.overhead;
  if (!has_slope(samples.round_trips) || !has_slope(samples.large_stream)) return figures;
  // One way a byte takes put + wire + take, one after another; in a stream the slowest of them sets the pace.
  const double one_way = trip.slope / 2;
  const double per_message = fit_line(samples.large_stream).slope;
  const double pace = std::clamp((per_message - figures.overhead) / samples.large_bytes, 0.0, one_way);
  const double rest = one_way - pace;
  if (link_class == LinkClass::kOtherHost) {
    figures.wire = pace;
    figures.put = figures.take = rest / 2;
  } else {
    figures.wire = 0;
    figures.put = pace;
    // Where a receiver may read in place, what costs no more than its own copy was that.
    figures.take = known.take > 0 || rest > 1.5 * copy ? rest : 0;
  }
  return figures;
}

Result<ClusterModel> probe(Prober& prober, const ClusterModel& known, int me, double budget_s) {
  ClusterModel model = known;
  double spent = 0;
  const std::span<const uint64_t> sizes(kSizes), tiles = sizes.subspan(2);  // of tiles, not of a few bytes
  const auto per_byte = [&](double& figure, auto measure) -> Status {
    std::vector<Sample> samples;
    RINGFOLD_TRY(repeat<uint64_t>(tiles, budget_s / 20, spent, samples, measure));
    if (has_slope(samples)) figure = fit_line(samples).slope;
    return {};
  };
  RINGFOLD_TRY(per_byte(model.node.copy, [&](uint64_t bytes) { return prober.copy(bytes); }));
  RINGFOLD_TRY(per_byte(model.node.reduce, [&](uint64_t bytes) { return prober.reduce(bytes); }));
  // Three of a tile each: whether a codec pays is decided by factors, not by percents.
  const auto per_value_byte = [&](double& figure, auto measure) -> Status {
    std::vector<double> samples;
    for (int i = 0; i < 3; ++i) {
      const auto seconds = measure();
      if (!seconds.ok()) return seconds.status();
      spent += *seconds;
      samples.push_back(*seconds);
    }
    figure = median(samples) / kCodedBytes;
    return {};
  };
  for (int k = 1; k < kCodecKinds; ++k) {
    const auto kind = static_cast<CodecKind>(k);
    CodecFigures& codec = model.codecs[static_cast<size_t>(k)];
    RINGFOLD_TRY(per_value_byte(codec.encode, [&] { return prober.encode(kind, kCodedBytes); }));
    RINGFOLD_TRY(per_value_byte(codec.decode, [&] { return prober.decode(kind, kCodedBytes); }));
  }

  const double allowance = 0.9 * budget_s / (3 * kLinkClasses);
  for (int c = 0; c < kLinkClasses; ++c) {
    const auto link_class = static_cast<LinkClass>(c);
    int peer = 0;
    while (peer < model.ranks() && (peer == me || model.class_of(me, peer) != link_class)) ++peer;
    if (peer == model.ranks()) continue;
    LinkSamples samples{.large_bytes = kLargeBytes};
    RINGFOLD_TRY(repeat<uint64_t>(sizes, allowance, spent, samples.round_trips,
                                  [&](uint64_t bytes) { return prober.round_trip(peer, bytes); }));
    RINGFOLD_TRY(repeat<int>(kSmallCounts, allowance, spent, samples.small_stream,
                             [&](int count) { return prober.stream(peer, kSmallBytes, count); }));
    RINGFOLD_TRY(repeat<int>(kLargeCounts, allowance, spent, samples.large_stream,
                             [&](int count) { return prober.stream(peer, kLargeBytes, count); }));
    model.links[c] = fit_link(link_class, samples, model.node.copy, known.links[c]);
    if (link_class == LinkClass::kOtherHost) model.node.port = model.links[c].wire;  // one stream fills it
  }
  model.measured = true;
  RINGFOLD_TRY(model.check());
  return model;
}

}  // namespace ringfold::model
