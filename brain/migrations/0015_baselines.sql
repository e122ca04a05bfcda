-- What a VM had before Gnomon's first change, as JSON: a list of settings, one for each means that was changed and not released since.
ALTER TABLE allocation ADD COLUMN baselines TEXT NOT NULL DEFAULT '[]';

-- VMs and hosts are forgotten by their age as well, unless something open is about them: few commands are.
CREATE INDEX vm_at ON vm (at_ms);
CREATE INDEX vm_host ON vm (host);
CREATE INDEX command_open ON command (vm) WHERE settled = 0;
