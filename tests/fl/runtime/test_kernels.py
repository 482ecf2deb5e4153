from fl.runtime import kernels


def test_onednn_is_on_unless_the_user_has_set_it(monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    assert kernels.describe_kernels().startswith("oneDNN by TensorFlow's default, ")
    kernels.prefer_onednn()
    assert kernels.describe_kernels().startswith("oneDNN on, ")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    kernels.prefer_onednn()
    assert kernels.describe_kernels().startswith("oneDNN off, ")


def test_a_limited_instruction_set_is_named(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    assert "limited" not in kernels.describe_kernels()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert kernels.describe_kernels().endswith(" limited to AVX2")
