def test_packages_can_be_imported() -> None:
    import tinygrad_peft
    import tinygrad_peft_lora

    assert tinygrad_peft.__doc__
    assert tinygrad_peft_lora.__doc__
