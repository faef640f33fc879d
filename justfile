# What people do here, by name: `just` lists it. Each line stands alone and can be typed without just
# (https://just.systems). CI runs .ci/run, which is `just test`.

[private]
default:
    @{{ just_executable() }} --list --unsorted

# the program and its tests' tools
build:
    cargo build --workspace

# format, lints, all tests without clusters: before each commit
quick *NAME:
    tests/run --quick -- {{ NAME }}

# everything that CI runs, as root on Debian
test *NAME:
    tests/run -- {{ NAME }}

# the tests of one target on a real cluster, as root: `just e2e lock`, `just e2e lock NAME`
e2e TARGET *NAME:
    cargo nextest run --config-file tests/nextest.toml --test e2e_{{ TARGET }} {{ NAME }}

# how fast the disk is, as root (docs/measurements.md)
bench *ARGS:
    qemu/device-bench {{ ARGS }}

# instructions per request against the record
counts *ARGS:
    qemu/instruction-counts {{ ARGS }}

# what others send us, from a seed and a corpus, some seconds for each target
fuzz *NAME:
    cargo test --package bypass-fuzz --test targets -- {{ NAME }}

# the library's documentation, as HTML in target/doc
docs:
    cargo doc --no-deps --document-private-items

# licences, bans, sources and known faults of what is depended on (needs cargo-deny and a network)
deny:
    cargo deny check
