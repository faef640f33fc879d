//! gluster
