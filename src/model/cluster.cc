#include "model/cluster.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

namespace ringfold::model {
namespace {

constexpr Figure<LinkFigures> kLinkFigures[] = {
    {"latency", "s", "from the end of a put until the receiver can see the message", &LinkFigures::latency},
    {"overhead", "s", "of a core per message, at either end", &LinkFigures::overhead},
    {"wire", "s/B", "of the link, one message after another", &LinkFigures::wire},
    {"put", "s/B", "of the sender's core", &LinkFigures::put},
    {"take", "s/B", "of the receiver's core until the payload is in its memory", &LinkFigures::take},
};
constexpr Figure<NodeFigures> kNodeFigures[] = {
    {"port", "s/B", "of a host's network port, in each direction, shared by its ranks", &NodeFigures::port},
    {"copy", "s/B", "of a core that copies memory", &NodeFigures::copy},
    {"reduce", "s/B", "of a core that folds two operands, per byte of the result", &NodeFigures::reduce},
    {"hand_over", "s", "until a rank that waited gets a core, where ranks share cores", &NodeFigures::hand_over},
};
constexpr Figure<CodecFigures> kCodecFigures[] = {
    {"encode", "s/B", "of a core that encodes, per byte of values", &CodecFigures::encode},
    {"decode", "s/B", "of a core that decodes and adds, per byte of values", &CodecFigures::decode},
};

constexpr double kMostSeconds = 1e3;  // no figure is this large
constexpr int64_t kMostRanks = 1 << 30;

template <typename Figures>
bool sane(const Figures& figures, std::span<const Figure<Figures>> table) {
  return std::all_of(table.begin(), table.end(), [&](const auto& figure) {
    const double value = figures.*figure.value;
    return value >= 0 && value <= kMostSeconds;  // and no NaN
  });
}

std::string text_of(double value, std::string_view unit) {
  return unit == "s" ? seconds_text(value) : fmt::format("{:.4g} ns/B", value * 1e9);
}

using Json = nlohmann::json;

template <typename Figures>
Json json_of(const Figures& figures, std::span<const Figure<Figures>> table) {
  Json json = Json::object();
  for (const auto& figure : table) json[std::string(figure.name)] = figures.*figure.value;
  return json;
}

// Readers: false on anything that is missing or of another type.
template <typename Figures>
bool read(const Json& json, const char* key, Figures& figures, std::span<const Figure<Figures>> table) {
  if (!json.contains(key) || !json[key].is_object()) return false;
  const Json& object = json[key];
  return std::all_of(table.begin(), table.end(), [&](const auto& figure) {
    const auto it = object.find(std::string(figure.name));
    if (it == object.end() || !it->is_number()) return false;
    figures.*figure.value = it->template get<double>();
    return true;
  });
}

bool read(const Json& json, const char* key, std::vector<int>& values) {
  if (!json.contains(key) || !json[key].is_array()) return false;
  for (const Json& item : json[key]) {
    if (!item.is_number_integer()) return false;
    const auto value = item.get<int64_t>();
    if (value < 0 || value > kMostRanks) return false;
    values.push_back(static_cast<int>(value));
  }
  return true;
}

}  // namespace

std::string_view name_of(LinkClass link_class) {
  return link_class == LinkClass::kSameHost ? "same_host" : "other_host";
}

std::span<const Figure<LinkFigures>> link_figures() { return kLinkFigures; }
std::span<const Figure<NodeFigures>> node_figures() { return kNodeFigures; }
std::span<const Figure<CodecFigures>> codec_figures() { return kCodecFigures; }

Status ClusterModel::check() const {
  const auto bad = [](std::string what) { return Status(Code::kInvalid, "cluster model: " + what); };
  if (host_of.empty()) return bad("it has no rank");
  int seen = 0;
  for (const int host : host_of) {
    if (host < 0 || host > seen) return bad("hosts must be numbered from 0 in order of first appearance");
    seen = std::max(seen, host + 1);
  }
  if (seen != hosts()) return bad(fmt::format("cores of {} hosts for the ranks of {}", hosts(), seen));
  if (std::any_of(cores.begin(), cores.end(), [](int c) { return c < 1; })) return bad("a host without cores");
  for (const LinkFigures& figures : links) {
    if (!sane(figures, link_figures())) return bad("a link's figure is negative, or far too large");
  }
  for (const CodecFigures& figures : codecs) {
    if (!sane(figures, codec_figures())) return bad("a codec's figure is negative, or far too large");
  }
  if (!sane(node, node_figures())) return bad("a figure is negative, or far too large");
  return {};
}

void ClusterModel::take_figures(const ClusterModel& other) {
  for (int c = 0; c < kLinkClasses; ++c) {
    if (!other.measured || transports[c] != other.transports[c]) return;
  }
  std::copy(std::begin(other.links), std::end(other.links), links);
  node = other.node;
  codecs = other.codecs;
  measured = true;
}

std::string ClusterModel::to_string() const {
  std::string text =
      fmt::format("{} ranks on {} hosts, {} figures\n", ranks(), hosts(), measured ? "measured" : "default");
  for (int c = 0; c < kLinkClasses; ++c) {
    for (const auto& figure : link_figures()) {
      text += fmt::format("{} ({}) {} {}: {}\n", name_of(static_cast<LinkClass>(c)), transports[c], figure.name,
                          text_of(links[c].*figure.value, figure.unit), figure.meaning);
    }
  }
  for (const auto& figure : node_figures()) {
    text += fmt::format("{} {}: {}\n", figure.name, text_of(node.*figure.value, figure.unit), figure.meaning);
  }
  return text;
}

LinkFigures default_link(LinkClass link_class, std::string_view transport) {
  if (transport == "shm") return {.latency = 0.2e-6, .overhead = 0.1e-6, .put = 0.1e-9};
  // Threads of one process: the receiver reads what is put in place.
  if (transport == "loopback") return {.latency = 0.2e-6, .overhead = 0.1e-6};
  // The kernel copies on either side and no wire is in between: what is sent is with the receiver when the call
  // returns. (Fitted to 576 times of five collectives by all of their algorithms, 2, 4 and 8 ranks on two cores of an
  // Intel Xeon: predictions err by a third, and what they choose takes 3 % more than the best.)
  if (link_class == LinkClass::kSameHost && transport == "tcp") {
    return {.overhead = 2.5e-6, .put = 0.05e-9, .take = 0.08e-9};
  }
  if (link_class == LinkClass::kSameHost) return {.overhead = 3e-6, .put = 0.25e-9, .take = 0.2e-9};
  // Most of what a small message takes is a core's: calls, the protocol, an interrupt. A rate between those of 1 and
  // 10 Gbit/s: what is right for it is nowhere far from the best at either.
  return {.latency = 8e-6, .overhead = 6e-6, .wire = 4e-9, .put = 0.2e-9, .take = 0.2e-9};
}

NodeFigures default_node() { return {.port = 4e-9, .copy = 0.1e-9, .reduce = 0.12e-9, .hand_over = 3e-6}; }

// Of the order of what a core with AVX2 does with values that are not in its cache.
std::array<CodecFigures, kCodecKinds> default_codecs() {
  std::array<CodecFigures, kCodecKinds> codecs;
  codecs.fill({.encode = 1e-9, .decode = 0.5e-9});
  codecs[static_cast<size_t>(CodecKind::kNone)] = {};
  for (CodecKind kind : {CodecKind::kF16, CodecKind::kBF16, CodecKind::kInt8, CodecKind::kInt4}) {
    codecs[static_cast<size_t>(kind)] = {.encode = 0.15e-9, .decode = 0.15e-9};
  }
  return codecs;
}

ClusterModel default_cluster(std::vector<int> host_of, std::vector<int> cores, std::string same_host,
                             std::string other_host) {
  ClusterModel cluster{.host_of = std::move(host_of), .cores = std::move(cores)};
  cluster.links[0] = default_link(LinkClass::kSameHost, same_host);
  cluster.links[1] = default_link(LinkClass::kOtherHost, other_host);
  cluster.transports[0] = std::move(same_host);
  cluster.transports[1] = std::move(other_host);
  cluster.node = default_node();
  return cluster;
}

std::string to_text(const ClusterModel& cluster) {
  Json json = {{"host_of", cluster.host_of}, {"cores", cluster.cores}, {"measured", cluster.measured}};
  for (int c = 0; c < kLinkClasses; ++c) {
    const std::string name(name_of(static_cast<LinkClass>(c)));
    json[name] = json_of(cluster.links[c], link_figures());
    json["transports"].push_back(cluster.transports[c]);
  }
  json["node"] = json_of(cluster.node, node_figures());
  for (int k = 1; k < kCodecKinds; ++k) {
    const std::string name(name_of(static_cast<CodecKind>(k)));
    json["codecs"][name] = json_of(cluster.codecs[static_cast<size_t>(k)], codec_figures());
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<ClusterModel> cluster_from_text(std::string_view text) {
  const Status bad(Code::kInvalid, "not the text of a cluster model");
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return bad;
  ClusterModel cluster;
  bool good = read(json, "host_of", cluster.host_of) && read(json, "cores", cluster.cores) &&
              read(json, "node", cluster.node, node_figures());
  for (int c = 0; c < kLinkClasses; ++c) {
    const std::string name(name_of(static_cast<LinkClass>(c)));
    good = good && read(json, name.c_str(), cluster.links[c], link_figures());
  }
  const auto codecs = json.find("codecs");
  good = good && codecs != json.end();
  for (int k = 1; k < kCodecKinds && good; ++k) {
    const std::string name(name_of(static_cast<CodecKind>(k)));
    good = read(*codecs, name.c_str(), cluster.codecs[static_cast<size_t>(k)], codec_figures());
  }
  const auto measured = json.find("measured");
  const auto transports = json.find("transports");
  good = good && measured != json.end() && measured->is_boolean() && transports != json.end() &&
         transports->is_array() && transports->size() == kLinkClasses;
  if (!good) return bad;
  cluster.measured = measured->get<bool>();
  for (int c = 0; c < kLinkClasses; ++c) {
    const Json& name = (*transports)[static_cast<size_t>(c)];
    if (!name.is_string()) return bad;
    cluster.transports[c] = name.get<std::string>();
  }
  RINGFOLD_TRY(cluster.check());
  return cluster;
}

std::string seconds_text(double seconds) {
  if (!std::isfinite(seconds)) return "never";
  const auto text = [](double value, std::string_view unit) {
    return fmt::format("{:.{}f} {}", value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0, unit);
  };
  if (seconds >= 0.9995) return text(seconds, "s");
  if (seconds >= 0.9995e-3) return text(seconds * 1e3, "ms");
  if (seconds >= 0.9995e-6) return text(seconds * 1e6, "us");
  return text(seconds * 1e9, "ns");
}

std::string bytes_text(uint64_t bytes) {
  constexpr std::string_view kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (unit + 1 < std::size(kUnits) && bytes >= 1024 && bytes % 1024 == 0) bytes /= 1024, ++unit;
  return fmt::format("{} {}", bytes, kUnits[unit]);
}

}  // namespace ringfold::model
