"""INT8: which crops a calibration uses, the ranges they give, and what each layer costs."""
