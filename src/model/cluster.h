// What the cost model knows of the machines: which rank runs where, and the figures of links, memory and cores.
//
// A value: free of handles, cheap to copy, equal on all ranks once it was passed round as text.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ringfold/codec.h"
#include "ringfold/status.h"

namespace ringfold::model {

// How a message gets from one rank to another; all pairs of a class have the same figures. Ranks of a host use shared
// memory, or loopback where they are threads, or tcp where nothing else is left; ranks of two hosts use tcp.
enum class LinkClass : uint8_t { kSameHost, kOtherHost };
inline constexpr int kLinkClasses = 2;
std::string_view name_of(LinkClass link_class);  // "same_host", "other_host"

// A message of b bytes keeps the sender's core busy for overhead + b * put, is on the wire for b * wire while nothing
// else is on this link, arrives latency later, and keeps the receiver's core busy for overhead + b * take. (The usual
// names: alpha = latency, o = overhead, beta = whichever of the three rates is the largest, G = wire.) Where put and
// take copy through shared memory nothing is on a wire: wire = 0.
struct LinkFigures {
  double latency = 0;
  double overhead = 0;
  double wire = 0;
  double put = 0;
  double take = 0;
  friend bool operator==(const LinkFigures&, const LinkFigures&) = default;
};

// What does not depend on a link.
struct NodeFigures {
  double port = 0;  // each direction, of what goes to other hosts
  double copy = 0;
  double reduce = 0;
  double hand_over = 0;
  friend bool operator==(const NodeFigures&, const NodeFigures&) = default;
};

// What a core takes to encode values and to decode and add them, per byte of values.
struct CodecFigures {
  double encode = 0;
  double decode = 0;
  friend bool operator==(const CodecFigures&, const CodecFigures&) = default;
};

// A figure for people and files: its name, unit and meaning.
template <typename Figures>
struct Figure {
  std::string_view name;
  std::string_view unit;  // "s", "s/B"
  std::string_view meaning;
  double Figures::*value;
};
std::span<const Figure<LinkFigures>> link_figures();
std::span<const Figure<NodeFigures>> node_figures();
std::span<const Figure<CodecFigures>> codec_figures();

std::array<CodecFigures, kCodecKinds> default_codecs();

struct ClusterModel {
  std::vector<int> host_of;              // rank -> host, numbered from 0 in order of first appearance
  std::vector<int> cores;                // host -> cores that its ranks may use; ranks beyond them take turns
  std::string transports[kLinkClasses];  // "shm", "tcp", ... by class
  LinkFigures links[kLinkClasses];
  NodeFigures node;
  std::array<CodecFigures, kCodecKinds> codecs = default_codecs();  // by kind, without rotation and nearest rounding
  bool measured = false;                                            // else the defaults
  friend bool operator==(const ClusterModel&, const ClusterModel&) = default;

  int ranks() const { return static_cast<int>(host_of.size()); }
  int hosts() const { return static_cast<int>(cores.size()); }
  LinkClass class_of(int from, int to) const {
    const bool same = host_of[static_cast<size_t>(from)] == host_of[static_cast<size_t>(to)];
    return same ? LinkClass::kSameHost : LinkClass::kOtherHost;
  }
  const LinkFigures& link(int from, int to) const { return links[static_cast<int>(class_of(from, to))]; }

  // There are more of them on the one host than cores.
  bool ranks_take_turns() const { return hosts() == 1 && ranks() > cores[0]; }
  // Two ranks that share memory and have a core each.
  bool two_neighbours() const {
    const std::string& transport = transports[static_cast<int>(LinkClass::kSameHost)];
    return ranks() == 2 && hosts() == 1 && !ranks_take_turns() && (transport == "shm" || transport == "loopback");
  }

  // Takes what was measured for a set of ranks that these are a part of, where the same transports join them.
  void take_figures(const ClusterModel& other);
  // kInvalid unless hosts are numbered as said, each has a core, and every figure is a sane number.
  Status check() const;
  // A line per figure: "same_host (shm) latency 0.25 us".
  std::string to_string() const;
};

// Figures that need no measuring: of the order of what shared memory, tcp through the loopback interface and tcp
// between hosts show; other transports cost somewhat more within a host.
LinkFigures default_link(LinkClass link_class, std::string_view transport);
NodeFigures default_node();
// A cluster with these defaults. `cores` by host.
ClusterModel default_cluster(std::vector<int> host_of, std::vector<int> cores, std::string same_host = "shm",
                             std::string other_host = "tcp");

// As text (JSON) and back, exactly.
std::string to_text(const ClusterModel& cluster);
Result<ClusterModel> cluster_from_text(std::string_view text);

// "1.5 us", "20.0 ms"; "4 KiB", "3 B". For people.
std::string seconds_text(double seconds);
std::string bytes_text(uint64_t bytes);

}  // namespace ringfold::model
