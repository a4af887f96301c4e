// `ringfold doctor` on RDMA devices that are not as they should be: a double of libibverbs and folders in the place
// of /sys and /dev.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/transport/verbs_double.h"
#include "tools/cli/rdma_checks.h"
#include "transports/ucx/ucx.h"

namespace ringfold::cli {
namespace {

using transport::test::VerbsDouble;
using Settings = VerbsDouble::Settings;
namespace fs = std::filesystem;

// Files under a folder of their own.
class Files {
 public:
  Files() {
    std::string pattern = testing::TempDir() + "rdma.XXXXXX";
    root_ = ::mkdtemp(pattern.data());
  }
  ~Files() { fs::remove_all(root_); }
  Files& add(const std::string& path, const std::string& text = "") {
    fs::create_directories(fs::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text << "\n";
    return *this;
  }
  const std::string& root() const { return root_; }

 private:
  std::string root_;
};

struct Said {
  std::string text;
  bool works = false;
  bool has(const std::string& part) const { return text.find(part) != std::string::npos; }
};

Said say(const verbs::Options& options, bool required = false) {
  Findings findings;
  testing::internal::CaptureStdout();
  const bool works = check_verbs(options, 2, required, &findings);
  return {testing::internal::GetCapturedStdout(), works};
}

verbs::Options on(const VerbsDouble& network, const std::string& root = "/nowhere") {
  verbs::Options options;
  options.api = network.api();
  options.root = root;
  return options;
}

TEST(RdmaChecks, AHealthyPortIsShownAndItsMemoryTried) {
  VerbsDouble network({});
  const Said said = say(on(network));
  EXPECT_TRUE(said.works);
  EXPECT_TRUE(said.has("OK    rdma double0:1   RoCE, ")) << said.text;
  EXPECT_TRUE(said.has("GID 0: fe80::") && said.has("1: 10.1.1.0 (RoCE v2)")) << said.text;
  EXPECT_TRUE(said.has("OK    rdma memory      10.3 MiB could be locked: enough for 2 ranks")) << said.text;
  EXPECT_FALSE(said.has("mend")) << said.text;
}

TEST(RdmaChecks, WithoutAnyDeviceNothingIsWrongUnlessItIsAskedFor) {
  VerbsDouble network({.devices = 0});
  Said said = say(on(network));
  EXPECT_FALSE(said.works);
  EXPECT_EQ(said.text,
            "OK    rdma             none: this host has no RDMA device (/sys/class/infiniband is empty)\n");
  said = say(on(network), true);
  EXPECT_TRUE(said.has("FAIL  rdma ") && said.has("mend: unset RINGFOLD_TRANSPORT")) << said.text;
}

TEST(RdmaChecks, ADeviceThatOnlyTheKernelShowsSaysWhatIsMissing) {
  VerbsDouble network({.devices = 0});
  Files files;
  files.add("/sys/class/infiniband/mlx5_0/node_type");
  Said said = say(on(network, files.root()));
  EXPECT_FALSE(said.works);
  EXPECT_TRUE(said.has("WARN  rdma mlx5_0:1    the kernel's module ib_uverbs is not loaded\n")) << said.text;
  EXPECT_TRUE(said.has("mend: modprobe ib_uverbs\n")) << said.text;

  files.add("/sys/class/infiniband_verbs/uverbs3/ibdev", "mlx5_0");
  said = say(on(network, files.root()), true);
  EXPECT_TRUE(said.has("FAIL  rdma mlx5_0:1    /dev/infiniband/uverbs3 is missing")) << said.text;
  EXPECT_TRUE(said.has("mend: start the container with --device /dev/infiniband")) << said.text;

  files.add("/dev/infiniband/uverbs3");
  said = say(on(network, files.root()));
  EXPECT_TRUE(said.has("libibverbs has no driver for it") && said.has("mend: install its provider")) << said.text;

  if (::geteuid() != 0) {  // root may open everything
    fs::permissions(files.root() + "/dev/infiniband/uverbs3", fs::perms::none);
    said = say(on(network, files.root()));
    EXPECT_TRUE(said.has("uverbs3 is not open to this user") && said.has("mend: chmod 666")) << said.text;
  }
}

TEST(RdmaChecks, OfTwoDevicesOneIsEnoughAndTheOtherIsStillNamed) {
  VerbsDouble network({});
  Files files;
  files.add("/sys/class/infiniband/double0/node_type").add("/sys/class/infiniband/hidden0/node_type");
  const Said said = say(on(network, files.root()), true);
  EXPECT_TRUE(said.works);
  EXPECT_TRUE(said.has("OK    rdma double0:1")) << said.text;
  EXPECT_TRUE(said.has("WARN  rdma hidden0:1   the kernel's module ib_uverbs is not loaded")) << said.text;
  EXPECT_FALSE(said.has("FAIL")) << said.text;
}

TEST(RdmaChecks, APortThatCannotBeUsedSaysHowToMendIt) {
  struct {
    Settings settings;
    const char *words, *mend;
  } cases[] = {{{.state = IBV_PORT_DOWN}, "it is down", "mend: ip link set eth7 up"},
               {{.gids = 0}, "it has no GID", "mend: give eth7 an IP address (ip addr add ADDRESS/PREFIX dev eth7)"},
               {{.iwarp = true}, "iWARP has no write with immediate data", "mend: none for verbs"}};
  Files files;
  files.add("/sys/class/infiniband/double0/ports/1/gid_attrs/ndevs/0", "eth7");
  for (const auto& c : cases) {
    VerbsDouble network(c.settings);
    const Said said = say(on(network, files.root()), true);
    EXPECT_FALSE(said.works);
    EXPECT_TRUE(said.has(std::string("FAIL  rdma double0:1   ") + c.words)) << said.text;
    EXPECT_TRUE(said.has(c.mend)) << said.text;
  }
}

TEST(RdmaChecks, GidsThatReachFewAreAWarning) {
  for (const auto& [settings, words] : {std::pair<Settings, const char*>{{.gids = 1}, "its GIDs are all link-local"},
                                        {{.gid_type = 1}, "its GIDs are all of RoCE v1"}}) {
    VerbsDouble network(settings);
    const Said said = say(on(network));
    EXPECT_TRUE(said.works);
    EXPECT_TRUE(said.has(std::string("WARN  rdma double0:1   ") + words)) << said.text;
    EXPECT_TRUE(said.has("mend: give its network interface an IP address")) << said.text;
  }
}

TEST(RdmaChecks, SmallPacketsAreBlamedOnWhatMakesThemSmall) {
  VerbsDouble network({.mtu = IBV_MTU_1024});
  Files files;
  files.add("/sys/class/infiniband/double0/parent", "eth7").add("/sys/class/net/eth7/mtu", "1500");
  Said said = say(on(network, files.root()));
  EXPECT_TRUE(said.works);
  EXPECT_TRUE(said.has("packets of 1024 bytes, where the device can do 4096: eth7 has an MTU of 1500\n"))
      << said.text;
  EXPECT_TRUE(said.has("mend: ip link set eth7 mtu 4200 or more")) << said.text;
  files.add("/sys/class/net/eth7/mtu", "9000");
  said = say(on(network, files.root()));
  EXPECT_TRUE(said.has("though eth7 has an MTU of 9000\n") && said.has("mend: ip link set eth7 down")) << said.text;
}

TEST(RdmaChecks, MemoryThatCannotBeLockedIsAFailureAndLittleOfItAWarning) {
  VerbsDouble network({});
  network.refuse_registration(ENOMEM, 0);
  Said said = say(on(network));
  EXPECT_TRUE(said.has("FAIL  rdma memory      double0 cannot register 2112 KiB of memory")) << said.text;
  EXPECT_TRUE(said.has("mend: ulimit -l unlimited")) << said.text;
  network.refuse_registration(ENOMEM, -1);
  network.limit_registration(4 << 20);
  said = say(on(network));
  EXPECT_TRUE(said.has("WARN  rdma memory      double0 cannot register 10560 KiB of memory")) << said.text;
}

TEST(UcxChecks, SettingsThatCannotWorkAreFound) {
  const auto remarks_with = [](const char* tls) {
    ::setenv("UCX_TLS", tls, 1);
    const auto found = transport::ucx::remarks();
    ::unsetenv("UCX_TLS");
    return found;
  };
  for (const char* good : {"rc_v,ud_v", "all", "^tcp", "tcp,self", "ib", "rc_verbs,ud_verbs,self"})
    EXPECT_TRUE(remarks_with(good).empty()) << good;
  for (const char* bad : {"rc_verbs", "rc_verbs,self", "dc_mlx5"}) {
    const auto found = remarks_with(bad);
    ASSERT_EQ(found.size(), 1u) << bad;
    EXPECT_NE(found[0].text.find(bad), std::string::npos);
    EXPECT_NE(found[0].mend.find("ud_v"), std::string::npos);
  }
}

}  // namespace
}  // namespace ringfold::cli
