from fl.runtime import kernels


def test_prefer_onednn_keeps_setting_of_environment(monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    assert kernels.describe_kernels().startswith("oneDNN by TensorFlow's default, ")
    kernels.prefer_onednn()
    assert kernels.describe_kernels().startswith("oneDNN on, ")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    kernels.prefer_onednn()
    assert kernels.describe_kernels().startswith("oneDNN off, ")


def test_describe_kernels_names_limited_instruction_set(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    assert "limited" not in kernels.describe_kernels()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert kernels.describe_kernels().endswith(" limited to AVX2")
