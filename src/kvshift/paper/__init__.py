"""The paper's claims, checked one by one."""
