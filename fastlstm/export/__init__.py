"""Models as object files: what an embedded program, an application or a web page links.

`folder.export` writes a folder for a model. `source.py` says what a call computes, as programs for a target; `lowering`
makes one LLVM module of them, with all sizes and addresses as constants; `worker` makes its object code.
"""
