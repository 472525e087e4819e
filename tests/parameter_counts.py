"""Parameter counts of the seven F3RNets, which each implementation has to have."""

COUNTS = {
    "wo_f3d": 746_339,
    "w_f3d": 237_609,
    "enc": 490_707,
    "dec": 543_683,
    "fr": 695_897,
    "ms": 288_051,
    "mrb": 297_289,
}
