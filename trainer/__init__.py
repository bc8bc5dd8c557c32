"""Labels in, a better model out: SFT, reward models, DPO and CPL, through one loop in plain torch."""
