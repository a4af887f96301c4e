#pragma once

#include <string>

namespace ringfold::test {

// Until the end of the running test, log lines that contain `part` are expected (and not printed). Any other line at
// warning level or above fails the test.
void expect_log(std::string part);

}  // namespace ringfold::test
