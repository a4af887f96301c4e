#pragma once

namespace ringfold::train {

// The program ringfold-train: one rank. 0 when all went well.
int train_main(int argc, char** argv);

// A rank without which the others go on ends with what this variable says, else with 0, as launchers other than
// `ringfold train` end the others where one fails.
inline constexpr const char* kLeftOutVariable = "RINGFOLD_LEFT_OUT_STATUS";
inline constexpr int kExitLeftOut = 4;

}  // namespace ringfold::train
