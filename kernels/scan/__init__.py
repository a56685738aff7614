"""The selective scan along routes: reference, C++ and Triton, one file for each backend."""
