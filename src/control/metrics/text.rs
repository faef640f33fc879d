//! The names, units and labels of the metrics, and their text.
//!
//! Names follow Prometheus' conventions: `bypass_blk_` in front, base units and
//! `_total` of counters behind. `docs/status.md` lists them.

use std::fmt::Error;
use std::iter;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::control::copy_status::CopyStatus;
use crate::control::heal::PeerHeal;
use crate::control::serving_status::{QueueStatus, Serving};
use crate::control::status::{State, Status};
use crate::image::heal::Figures;

/// The images in OpenMetrics' text format 1.0, with its `# EOF`.
pub fn openmetrics(images: &[Status]) -> String {
    let mut images = images.to_vec();
    let read_only = |image: &Status| image.serving.as_ref().is_none_or(|s| s.read_only);
    images.sort_by_key(|i| (i.volume.clone(), i.image.clone(), read_only(i)));
    images.dedup_by(|b, a| (&a.volume, &a.image) == (&b.volume, &b.image));
    let mut registry = Registry::with_prefix("bypass_blk");
    registry.register_collector(Box::new(Images(images)));
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = text::encode(&mut out, &registry);
    out
}

/// The same in Prometheus' older text format 0.0.4, the one that node_exporter reads:
/// a counter's family is named with its `_total`, and units and the end are not said.
pub fn textfile(images: &[Status]) -> String {
    let all = openmetrics(images);
    let mut lines = all.lines().peekable();
    let mut out = String::new();
    let mut total = "";
    while let Some(line) = lines.next() {
        match line.split_once(' ').filter(|_| line.starts_with("# ")) {
            Some((_, rest)) if rest == "EOF" || rest.starts_with("UNIT ") => continue,
            Some((_, rest)) => {
                if rest.starts_with("HELP ") {
                    let counter = |next: &&str| next.ends_with(" counter");
                    total = lines.peek().filter(|n| counter(n)).map_or("", |_| "_total");
                }
                let mut words = rest.splitn(3, ' ');
                let mut word = || words.next().unwrap_or_default();
                let (what, name, text) = (word(), word(), word());
                out.extend(["# ", what, " ", name, total, " ", text, "\n"]);
            }
            None => out.extend([line, "\n"]),
        }
    }
    out
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug)]
struct Images(Vec<Status>);

impl Collector for Images {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), Error> {
        let mut families = Families(encoder);
        self.states(&mut families)?;
        self.copies(&mut families)?;
        self.healing(&mut families)?;
        self.requests(&mut families)
    }
}

impl Images {
    fn states(&self, out: &mut Families<'_>) -> Result<(), Error> {
        let one = |value: fn(&Status) -> Option<f64>| {
            let value = move |image| Some((image_labels(image), value(image)?));
            self.0.iter().filter_map(value)
        };
        let states = self.0.iter().flat_map(|image| {
            State::ALL.map(|state| {
                let labels = with(image_labels(image), "state", state.name());
                (labels, flag(image.state == state))
            })
        });
        out.gauge(
            "image_state",
            "1 for the state that the image is in",
            None,
            states,
        )?;
        out.gauge(
            "image_size",
            "Size of the image",
            Some(Unit::Bytes),
            one(|i| Some(i.size as f64)),
        )?;
        out.gauge(
            "image_files",
            "Files of an image in shards",
            None,
            one(|i| i.files.as_ref().map(|files| files.count as f64)),
        )?;
        out.gauge(
            "image_files_marked",
            "Those of them that are marked: after a crash of the host they are compared",
            None,
            one(|i| i.files.as_ref().map(|files| files.marked.len() as f64)),
        )?;
        out.gauge(
            "image_sync_failed",
            "1 when a sync of the local copy failed: the guest's flushes fail and the marks stay",
            None,
            one(|i| i.serving.as_ref().map(|_| flag(i.sync_failed.is_some()))),
        )?;
        out.gauge(
            "image_warnings",
            "What somebody should know and do: status says the words",
            None,
            one(|i| Some(i.warnings.len() as f64)),
        )?;
        out.gauge(
            "healer_up",
            "1 when a healer is at work for the image on this host",
            None,
            one(|i| i.heal.as_ref().map(|heal| flag(heal.healer.is_some()))),
        )?;
        out.gauge(
            "healer_limit",
            "Bandwidth limit of the healer; absent when there is none",
            Some(per_second()),
            one(|i| {
                i.heal
                    .as_ref()?
                    .healer
                    .as_ref()?
                    .bandwidth
                    .map(|limit| limit as f64)
            }),
        )?;
        out.gauge(
            "verified_timestamp",
            "When the copies were last compared",
            Some(Unit::Seconds),
            one(|i| i.last_verified.map(|verified| verified.at as f64)),
        )?;
        out.gauge(
            "verified_differing",
            "What differed when the copies were last compared",
            Some(Unit::Bytes),
            one(|i| {
                i.last_verified
                    .map(|verified| verified.differing_bytes as f64)
            }),
        )
    }

    fn copies(&self, out: &mut Families<'_>) -> Result<(), Error> {
        let each = |value: fn(&CopyStatus) -> Option<f64>| {
            self.0.iter().flat_map(move |image| {
                let value = move |copy| Some((copy_labels(image, copy), value(copy)?));
                image.copies.iter().filter_map(value)
            })
        };
        out.gauge(
            "copy_reachable",
            "1 when the session holds its locks on the copy's brick",
            None,
            each(|copy| Some(flag(copy.reachable))),
        )?;
        out.gauge(
            "copy_marked",
            "1 when some brick's marks say that the copy misses data",
            None,
            each(|copy| Some(flag(copy.stale))),
        )?;
        out.gauge(
            "copy_suspect",
            "1 when nobody knows in what the copy differs, so that it is compared",
            None,
            each(|copy| copy.behind.map(|behind| flag(behind.suspect))),
        )?;
        out.gauge(
            "copy_behind",
            "Bytes of the image in extents that the copy misses",
            Some(Unit::Bytes),
            each(|copy| copy.behind.map(|behind| behind.bytes as f64)),
        )?;
        out.gauge(
            "copy_behind_extents",
            "Extents that the copy misses",
            None,
            each(|copy| copy.behind.map(|behind| behind.extents as f64)),
        )
    }

    fn healing(&self, out: &mut Families<'_>) -> Result<(), Error> {
        out.gauge(
            "copy_oldest_unsent",
            "No acknowledged write that the copy misses is older",
            Some(Unit::Seconds),
            self.peers(|peer| Some(peer.oldest_unsent_seconds)),
        )?;
        out.gauge(
            "copy_debt_inherited",
            "1 when the debt is older than the session, and so than the age of what is unsent",
            None,
            self.peers(|peer| Some(flag(peer.oldest_unsent_at_least))),
        )?;
        out.gauge(
            "copy_heal_rate",
            "What is sent, zeroed and compared, of late",
            Some(per_second()),
            self.peers(|peer| peer.rate.map(|rate| rate as f64)),
        )?;
        out.gauge(
            "copy_heal_eta",
            "Until the copy misses nothing; absent when not known",
            Some(Unit::Seconds),
            self.peers(|peer| peer.eta_seconds.map(|eta| eta as f64)),
        )?;
        let done =
            |figure: fn(&Figures) -> u64| self.peers(move |peer| peer.figures.as_ref().map(figure));
        let bytes = || Some(Unit::Bytes);
        out.counter(
            "copy_sent",
            "Sent by the present healer",
            bytes(),
            done(|f| f.bytes_sent),
        )?;
        out.counter(
            "copy_zeroed",
            "Made zero without sending by the present healer",
            bytes(),
            done(|f| f.bytes_zeroed),
        )?;
        out.counter(
            "copy_compared",
            "Compared by checksum by the present healer",
            bytes(),
            done(|f| f.bytes_compared),
        )
    }

    /// A figure of every peer that has it.
    fn peers<V>(
        &self,
        value: impl Fn(&PeerHeal) -> Option<V> + Copy,
    ) -> impl Iterator<Item = (Labels, V)> {
        self.0.iter().flat_map(move |image| {
            let peers = image.heal.iter().flat_map(|heal| &heal.peers);
            peers.filter_map(move |peer| {
                let copy = image.copies.get(peer.copy)?;
                Some((copy_labels(image, copy), value(peer)?))
            })
        })
    }

    fn requests(&self, out: &mut Families<'_>) -> Result<(), Error> {
        let served = || {
            let served = |image| Some((image_labels(image), serving(image)?));
            self.0.iter().filter_map(served)
        };
        let sums = || served().map(|(labels, serving)| (labels, sum(&serving.queues)));
        out.counter(
            "requests",
            "Requests of the guest that were carried out",
            None,
            sums().flat_map(|(labels, sum)| {
                [
                    ("read", sum.reads),
                    ("write", sum.writes),
                    ("flush", sum.flushes),
                    ("discard", sum.discards),
                    ("write-zeroes", sum.write_zeroes),
                ]
                .map(|(kind, count)| (with(labels.clone(), "kind", kind), count))
            }),
        )?;
        out.counter(
            "request",
            "What the guest has read and written",
            Some(Unit::Bytes),
            sums().flat_map(|(labels, sum)| {
                [("read", sum.read_bytes), ("write", sum.written_bytes)]
                    .map(|(kind, count)| (with(labels.clone(), "kind", kind), count))
            }),
        )?;
        out.counter(
            "request_errors",
            "Requests of the guest that failed",
            None,
            sums().map(|(labels, sum)| (labels, sum.errors)),
        )?;
        out.gauge(
            "requests_in_flight",
            "Requests of the guest that are not answered yet",
            None,
            sums().map(|(labels, sum)| (labels, sum.in_flight as f64)),
        )?;
        out.gauge(
            "requests_parked",
            "Requests of the guest that wait for the marks",
            None,
            sums().map(|(labels, sum)| (labels, sum.parked as f64)),
        )?;
        out.gauge(
            "queues_dead",
            "Queues that do nothing until the guest's driver starts them anew",
            None,
            served().map(|(labels, serving)| {
                let dead = serving.queues.iter().filter(|queue| queue.dead.is_some());
                (labels, dead.count() as f64)
            }),
        )?;
        out.gauge(
            "front_end_dropped",
            "1 when the last front-end was dropped and no ring has started since",
            None,
            served().map(|(labels, serving)| (labels, flag(serving.dropped.is_some()))),
        )?;
        out.gauge(
            "disk_full",
            "For how long the local disk is full and requests of the guest wait for room; else 0",
            Some(Unit::Seconds),
            served().map(|(labels, s)| (labels, s.full.map_or(0.0, |full| full.seconds as f64))),
        )?;
        out.gauge(
            "requests_waiting_for_room",
            "Requests of the guest that wait for room on the local disk",
            None,
            served().map(|(labels, s)| (labels, s.full.map_or(0.0, |full| full.waiting as f64))),
        )?;
        out.gauge(
            "front_end_connected",
            "1 when a front-end is connected",
            None,
            served().map(|(labels, serving)| (labels, flag(serving.front_end))),
        )
    }
}

/// Writes families; one without samples is left out.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl Iterator<Item = (Labels, f64)>,
    ) -> Result<(), Error> {
        let samples = samples.map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.family(name, help, unit, MetricType::Gauge, samples)
    }

    fn counter(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl Iterator<Item = (Labels, u64)>,
    ) -> Result<(), Error> {
        let samples = samples.map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family(name, help, unit, MetricType::Counter, samples)
    }

    fn family<M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        kind: MetricType,
        mut samples: impl Iterator<Item = (Labels, M)>,
    ) -> Result<(), Error> {
        let Some(first) = samples.next() else {
            return Ok(());
        };
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for (labels, metric) in iter::once(first).chain(samples) {
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn serving(image: &Status) -> Option<&Serving> {
    image.serving.as_ref()
}

/// All queues together. `in_flight` and `parked` too.
fn sum(queues: &[QueueStatus]) -> QueueStatus {
    let all = |count: fn(&QueueStatus) -> u64| queues.iter().map(count).fold(0, u64::wrapping_add);
    QueueStatus {
        reads: all(|q| q.reads),
        read_bytes: all(|q| q.read_bytes),
        writes: all(|q| q.writes),
        written_bytes: all(|q| q.written_bytes),
        flushes: all(|q| q.flushes),
        discards: all(|q| q.discards),
        write_zeroes: all(|q| q.write_zeroes),
        errors: all(|q| q.errors),
        in_flight: all(|q| q.in_flight),
        parked: all(|q| q.parked),
        dead: None,
        held: all(|q| q.held),
    }
}

fn image_labels(image: &Status) -> Labels {
    vec![
        ("volume", image.volume.clone()),
        ("image", image.image.clone()),
    ]
}

fn copy_labels(image: &Status, copy: &CopyStatus) -> Labels {
    with(image_labels(image), "brick", &copy.brick)
}

fn with(mut labels: Labels, name: &'static str, value: &str) -> Labels {
    labels.push((name, value.to_owned()));
    labels
}

fn per_second() -> Unit {
    Unit::Other("bytes_per_second".to_owned())
}

fn flag(set: bool) -> f64 {
    f64::from(u8::from(set))
}
