"""On a machine with a GPU: are a wheel's kernels right, does its engine generate?"""
