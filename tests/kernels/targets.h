// Runs a check once for every instruction set that was compiled and that this processor has.
#pragma once

#include <gtest/gtest.h>

#include "kernels/cpu/targets.h"
// The line above comes first.
#include "hwy/highway.h"

namespace ringfold::test {

template <class Check>
void on_every_target(Check check) {
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    check();
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
}

}  // namespace ringfold::test
