// The verbs of the program `ringfold`. main.cc turns the command line into these structures; each verb is one
// function that returns the exit status of the program.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ringfold::cli {

// What the program's exit status means. `ringfold run` passes a failed rank's own status on, as timeout and env do.
enum Exit : int {
  kExitOk = 0,
  kExitFailed = 1,       // wrong results, a failed job, a check that found a fault
  kExitUsage = 2,        // the command line
  kExitEnvironment = 3,  // this machine: a program, host, file or permission is missing
};

// ringfold run, and whatever else starts ranks.
struct JobOptions {
  std::vector<std::string> command;
  int ranks = 0;                  // 0: as many as the hosts have slots
  std::string hosts;              // "a,b:2,[fd00::1]:4"; "": this host
  std::string address;            // where ranks of several hosts meet; "": found from the routes to the hosts
  std::vector<std::string> pass;  // further variables for ranks on other hosts: NAME or NAME=VALUE
  bool prefix = true;             // "[rank] " before each line
  bool keep_going = false;        // one rank's end is not the end of the others
  bool elastic = false;           // keep_going, and the job did well if any rank did
  int restarts = 0;               // ranks that fail are started again, so often in all; the others go on
  bool restart_all = false;       // ... or are ended, and started again with it; elastic: when none has done well
  int left_out_status = 0;        // of a rank that the others do not need: neither failure nor success; 0: none
  bool bind = true;               // ranks on this host, each to its share of the processors, where there are enough
  double timeout_s = 0;           // 0: none
  double grace_s = 5;             // from asking the ranks to end to ending them
  bool quiet = false;             // no output of the ranks, and no word about a failed one
  int expected_status = 0;        // an exit status that needs no words, as the rank has said what was wrong
};
int run_job(const JobOptions& options);

struct PerfOptions {
  std::string program = "ringfold perf";  // what messages begin with
  std::string op;                         // a name, or "all"
  int ranks = 0;                          // > 0: start them; 0: be one of a launched job
  std::string hosts;
  std::string min = "8", max = "64M";
  int factor = 4;
  std::string type = "f32", redop = "sum";
  double scale = 0.5;  // of scaled_sum
  std::string transport = "auto", algorithm = "auto", codec;
  int iterations = 0;  // 0: as many as fit the budget
  int warmup = 2;
  double budget_s = 0.1;  // of one cell of the table
  int root = 0;
  bool check = true;
  std::string in_place = "both";    // "out", "in"
  std::string memory = "ringfold";  // buffers from ringfold::allocate; "malloc": ordinary ones
  std::string json, plot, rows;
  bool counters = false;
  bool fresh = false;  // write what is sent anew before each timed call
  bool spoil = false;  // change one element of rank 0's results, to see that the check notices
  bool quiet = false;  // no table; the exit status tells
};
// `self`: this program's command line, to start the ranks with.
int perf(const PerfOptions& options, const std::vector<std::string>& self);

struct TuneOptions {
  int ranks = 0;  // > 0: start them; 0: be one of a launched job
  std::string hosts;
  std::string transport = "auto";
  double seconds = 2;
};
int tune(const TuneOptions& options, const std::vector<std::string>& self);

struct InfoOptions {
  bool json = false;
};
int info(const InfoOptions& options);

struct DoctorOptions {
  int ranks = 4;
  std::string hosts;
  bool self_test = true;
};
int doctor(const DoctorOptions& options);

struct ExplainOptions {
  std::string op;
  int ranks = 4;
  int root = 0;
  int rank = -1;  // >= 0: this rank's steps only
  int lanes = 0;  // 0: what the tuner chooses
  std::string size = "1M", type = "f32";
  std::string algorithm = "auto", codec;
  std::string hosts_of;           // "0,0,1,1": rank -> host
  std::string transport = "shm";  // within a host
  std::string svg;
};
int explain(const ExplainOptions& options);

struct PipelineOptions {
  std::string schedule;  // "": all
  int ranks = 4, micro_batches = 8, chunks = 0;
  std::string times = "1,1,1";
  double transfer = 0;
  std::string trace;
  bool json = false;
};
int pipeline(const PipelineOptions& options);

struct TrainOptions {
  int ranks = 0;
  std::string hosts;
  int restarts = 0;
  std::vector<std::string> arguments;  // for ringfold-train
};
int train(const TrainOptions& options);
// export, predict, serve.
int use_model(const std::string& verb, const std::vector<std::string>& arguments);

struct ReportOptions {
  std::string log;     // of ringfold train --json
  std::string output;  // "": the log's name with ".html" after it
  std::string trace;   // of a pipeline, in Chrome's format
};
int report(const ReportOptions& options);

// ---- small things that several verbs need ----

// Absolute path of this program.
std::string own_path();
// "8", "64K", "2M", "1G" (powers of 1024) in bytes; < 0: not a size.
long long parse_size(std::string_view text);
// "8", "64K", "1M": in the largest unit that keeps it whole.
std::string size_text(unsigned long long bytes);
// Writes the file ("-": standard output), or says on standard error why not.
bool write_file(const std::string& path, std::string_view text);

}  // namespace ringfold::cli
