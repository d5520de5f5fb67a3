"""Vision encoders: pixels ``[n,f,3,h,w]`` -> ``Features``."""
