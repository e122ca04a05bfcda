//! Hosts and VMs as reported.
