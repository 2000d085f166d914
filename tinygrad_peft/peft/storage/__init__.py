"""Adapters on disk: their folders, read once; loading, inspecting and saving them.

A folder holds `recipe.json`, which lists the steps in their order, and for each step an
`adapter_config.json` and an `adapter_model.safetensors` in Hugging Face PEFT's layout: beside it if
there is one step, in a folder of its own if there are several. The `FileFormat` of a config class
describes the tensors' names. Weights that are computed from others, such as a prefix from its
projection, have those beside them in `reparameterization.safetensors`, and in
`reparameterization.json` the settings for training, where those differ.

    folder          the files as they are, each opened once
    examination     what they mean, and how they differ from a model
    load, report    its two ends: one raises all problems, the other reports them
    inspection      reports on any folder or file
    save            a record of steps into a folder
    foreign         steps in other libraries' layouts
"""
