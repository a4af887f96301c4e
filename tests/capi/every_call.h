// The part of the tests that is C.
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

struct ringfold_comm;
// Every call once or more, with its results checked. NULL, or what went wrong. All ranks call it.
const char* play_every_call(struct ringfold_comm* comm);

#ifdef __cplusplus
}
#endif
