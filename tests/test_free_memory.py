"""Free memory: what the system says, and what a container's limit leaves of it."""

from __future__ import annotations

from medmamba.compute import free_memory


def test_the_smaller_of_system_and_container_counts(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 16 kB\nMemAvailable:    9000 kB\n")
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    monkeypatch.setattr(free_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory, "CONTROL_GROUP", tmp_path)
    assert free_memory.free_memory() == 4_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory.free_memory() == 9000 * 1024
    (tmp_path / "memory.max").write_text("500000\n")  # above its limit already
    assert free_memory.free_memory() == 0
