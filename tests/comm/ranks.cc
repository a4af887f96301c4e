#include "tests/comm/ranks.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

namespace ringfold::test {

Variable::Variable(std::string name, const std::string& value) : name_(std::move(name)) {
  ::setenv(name_.c_str(), value.c_str(), 1);
}
Variable::~Variable() { ::unsetenv(name_.c_str()); }

Options patient(std::string transport, std::string algorithm) {
  Options options;
  options.timeout_s = 60;
  options.transport = std::move(transport);
  options.algorithm = std::move(algorithm);
  return options;
}

Ranks::Ranks(int n, const Options& options) {
  auto made = Communicator::init_local(n, options);
  EXPECT_TRUE(made.ok()) << made.status().to_string();
  if (!made.ok()) std::abort();  // nothing that follows would say more
  ranks_ = *std::move(made);
}

void Ranks::each(const std::function<void(Communicator&)>& play) {
  std::vector<std::thread> threads;
  for (auto& c : ranks_) threads.emplace_back([&play, &c] { play(c); });
  for (auto& t : threads) t.join();
}

void processes(int n, const Options& options, const std::function<void(Communicator&)>& play, int doomed) {
  char folder[] = "/tmp/ringfold-test-XXXXXX";
  ASSERT_NE(::mkdtemp(folder), nullptr);
  const std::string key_file = std::string(folder) + "/key";
  std::ofstream(key_file) << std::string(64, 'a') << "\n";
  std::filesystem::permissions(key_file, std::filesystem::perms::owner_read);
  const Variable key("RINGFOLD_KEY_FILE", key_file);
  std::vector<pid_t> children;
  std::fflush(nullptr);
  for (int r = 0; r < n; ++r) {
    const pid_t pid = ::fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      Options mine = options;
      mine.rank = r;
      mine.size = n;
      mine.rendezvous = "dir:" + std::string(folder) + "/meet";
      {
        auto comm = Communicator::init(mine);
        EXPECT_TRUE(comm.ok()) << "rank " << r << ": " << comm.status().to_string();
        if (comm.ok()) play(*comm);
      }
      std::fflush(nullptr);
      ::_exit(testing::Test::HasFailure() ? 1 : 0);
    }
    children.push_back(pid);
  }
  for (int r = 0; r < n; ++r) {
    int status = 0;
    ASSERT_EQ(::waitpid(children[static_cast<size_t>(r)], &status, 0), children[static_cast<size_t>(r)]);
    if (r == doomed) continue;
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "rank " << r << " ended with status " << status;
  }
  std::filesystem::remove_all(folder);
}

Work start(Communicator& comm, const Call& call, const void* in, void* out, const CallOptions& o) {
  const auto root = call.shape.root;
  const std::vector<size_t> sizes(call.sizes.begin(), call.sizes.end());
  switch (call.shape.collective) {
    case Collective::kAllReduce: return comm.all_reduce(in, out, call.count, call.type, call.op, o);
    case Collective::kReduce: return comm.reduce(in, out, call.count, call.type, call.op, root, o);
    case Collective::kReduceScatter:
      if (!sizes.empty()) return comm.reduce_scatter_v(in, out, sizes, call.type, call.op, o);
      return comm.reduce_scatter(in, out, call.count, call.type, call.op, o);
    case Collective::kAllGather:
      if (!sizes.empty()) return comm.all_gather_v(in, out, sizes, call.type, o);
      return comm.all_gather(in, out, call.count, call.type, o);
    case Collective::kBroadcast: return comm.broadcast(in, out, call.count, call.type, root, o);
    case Collective::kGather: return comm.gather(in, out, call.count, call.type, root, o);
    case Collective::kScatter: return comm.scatter(in, out, call.count, call.type, root, o);
    case Collective::kAllToAll: {
      if (call.matrix.empty()) return comm.all_to_all(in, out, call.count, call.type, o);
      const auto layout = call.layout(comm.rank());
      const std::vector<size_t> send(layout.sizes.begin(), layout.sizes.end());
      const std::vector<size_t> receive(layout.receive_sizes.begin(), layout.receive_sizes.end());
      return comm.all_to_all_v(in, send, out, receive, call.type, o);
    }
    case Collective::kBarrier: return comm.barrier(o);
  }
  return {};
}

Work start(Communicator& comm, const Call& call, Buffers& b) { return start(comm, call, b.input(), b.output()); }

void perform(Communicator& comm, const Call& call) {
  Buffers buffers(call, comm.rank());
  const Status s = start(comm, call, buffers).wait();
  EXPECT_TRUE(s.ok()) << call.to_string() << ": " << s.to_string();
  if (s.ok()) {
    const std::string wrong = buffers.check();
    EXPECT_EQ(wrong, "");
  }
}

std::vector<Call> calls_of_blocks(int ranks, int count) {
  std::mt19937 random(static_cast<uint32_t>(ranks));
  std::vector<Call> calls;
  for (int i = 0; i < count; ++i) {
    Call call;
    const Collective forms[] = {Collective::kAllGather, Collective::kReduceScatter, Collective::kAllToAll};
    call.shape = {forms[i % 3], ranks, 0};
    call.type = static_cast<DataType>(random() % kDataTypes);
    call.salt = random();
    // A third of the blocks is empty; in one of ten calls all are.
    auto draw = [&]() -> uint64_t {
      return i >= count * 9 / 10 || random() % 3 == 0 ? 0 : random() % 3 == 0 ? random() % 5000 : random() % 20;
    };
    if (call.shape.collective == Collective::kAllToAll) {
      for (int r = 0; r < ranks; ++r) {
        call.matrix.emplace_back();
        for (int d = 0; d < ranks; ++d) call.matrix.back().push_back(draw());
      }
    } else {
      for (int r = 0; r < ranks; ++r) call.sizes.push_back(draw());
      call.in_place = random() % 2 == 0;
    }
    calls.push_back(call);
  }
  return calls;
}

void expect_ok(const Status& status) { EXPECT_TRUE(status.ok()) << status.to_string(); }

}  // namespace ringfold::test
