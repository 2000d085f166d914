"""Adapters on disk: their folders, read once; loading, inspecting and saving them.

A folder holds `recipe.json`, which lists the steps in their order, and for each step an
`adapter_config.json` and an `adapter_model.safetensors` in Hugging Face PEFT's layout: in the same
folder if there is one step, in a folder of its own if there are several. The `FileFormat` of a
config class describes the tensors' names. For weights that are computed from others, such as a
prefix from its projection, `reparameterization.safetensors` holds those others, and
`reparameterization.json` the settings for training, if they differ.

    folder          the files of an adapter, each opened once
    examination     the comparison of files and model, shared by load and report
    load, report    its two ends: one raises all problems, the other reports them
    inspection      reports on any folder or file
    save            writing a record's steps into a folder
    foreign         steps in other libraries' layouts
"""
