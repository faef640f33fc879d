//! `bypass-blk promote`: makes this host's stale copy the fresh one, when the host with
//! the newer data is gone for good.

use std::io::{BufRead, IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use crate::daemon::brick_view::lock_owner;
use crate::daemon::failure::Failure;
use crate::daemon::logging;
use crate::daemon::session_setup::{self, Place};
use crate::daemon::target::Target;
use crate::gluster::Timeouts;
use crate::image::brick_client::session_port::GlusterPort;
use crate::image::locate::Allowed;
use crate::image::replica::brick_port::{BrickPort, CopyState, Lock, PortError};
use crate::image::replica::brick_set::{BrickSet, Shape};
use crate::image::replica::names::Names;
use crate::image::replica::promotion::{self, Plan, Promotion, PromotionRefusal, Step};
use crate::image::replica::session_lock::{Blocked, Claim, lock_background, lock_session};
use crate::image::session::error::OpenError;
use crate::image::state_dir::{Entry, StateDir};

use super::arguments::{LogArgs, ServerArgs, StateDirArgs};

/// How long other clients' writes are waited for.
const DATA_LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Arguments of `promote`.
#[derive(Args, Debug)]
pub struct PromoteArgs {
    /// The image whose copy on this host becomes the fresh one
    #[arg(value_name = "VOLUME/IMAGE")]
    target: Target,

    /// Yes: what only the lost copy had is given up
    #[arg(long, required = true)]
    accept_loss: bool,

    /// The image's name once more, instead of being asked for it
    #[arg(long, value_name = "VOLUME/IMAGE")]
    confirm: Option<String>,

    /// Which copy: this host's brick, as `gluster volume info` names it
    #[arg(long, value_name = "HOST:/PATH")]
    brick: Option<String>,

    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    state_dir: StateDirArgs,

    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn run(args: PromoteArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level);
    let Target { volume, image } = &args.target;
    let brick = args.brick.as_deref();
    let server = &args.server.server;
    let place = session_setup::find(server, volume, &image.0, brick, Allowed::All, false)?;
    let names = place.located.names();
    let shape = place.located.shape(place.local);
    let owner = lock_owner(&place.me)?;
    let mut ports = GlusterPort::for_set(&place.located, &owner, Timeouts::default(), None);
    let reached = connect(&mut ports);
    lock(&place, &names, &mut ports, reached)?;
    let seen = probe(&names, &mut ports, reached)?;
    let plan = promotion::plan(&shape, &seen).map_err(|why| refused(&place, &names, why))?;

    println!("{}", loss(&place, &names, &plan));
    confirm(&args, &args.target.to_string())?;
    let promoted = promote_now(&place, &shape, &names, &mut ports, reached, &args)?;
    println!(
        "{} is the fresh copy now. Serve the image from here; {} healed from it when reached.",
        names.one(place.local),
        match promoted.stale.is_empty() {
            true => format!("{} is", names.list(promoted.lost)),
            false => format!(
                "{} and {} are",
                names.list(promoted.stale),
                names.list(promoted.lost)
            ),
        }
    );
    Ok(())
}

fn connect(ports: &mut [Box<dyn BrickPort>]) -> BrickSet {
    let ports = ports.iter_mut().enumerate();
    let connected = ports.filter_map(|(brick, port)| {
        let done = port.connect(Box::new(|_| {}));
        done.ok().map(|()| brick)
    });
    connected.collect()
}

/// What is reached is locked as by a session: nobody serves the image, heals or moves it.
fn lock(
    place: &Place,
    names: &Names,
    ports: &mut [Box<dyn BrickPort>],
    reached: BrickSet,
) -> Result<(), Failure> {
    let claim = Claim {
        session: place.me.session,
        read_only: false,
    };
    for (brick, port) in ports.iter_mut().enumerate() {
        if !reached.contains(brick) {
            continue;
        }
        lock_session(&mut **port, &claim)
            .and_then(|()| lock_background(&mut **port, &claim))
            .map_err(|blocked| match blocked {
                Blocked::Session(holder) => OpenError::Locked {
                    brick: names.one(brick),
                    holder,
                },
                Blocked::Busy(lock) => OpenError::Busy {
                    volume: names.volume.clone(),
                    lock,
                    brick: names.one(brick),
                },
                Blocked::Port(error) => brick_failed(names, brick, &error),
            })?;
    }
    Ok(())
}

fn probe(
    names: &Names,
    ports: &mut [Box<dyn BrickPort>],
    reached: BrickSet,
) -> Result<Vec<Option<CopyState>>, Failure> {
    let ports = ports.iter_mut().enumerate();
    let copies = ports.map(|(brick, port)| match reached.contains(brick) {
        true => port
            .probe()
            .map(Some)
            .map_err(|e| brick_failed(names, brick, &e)),
        false => Ok(None),
    });
    Ok(copies.collect::<Result<_, _>>()?)
}

/// All that is known of what is given up.
fn loss(place: &Place, names: &Names, plan: &Plan) -> String {
    let local = place.located.local_path(place.local);
    let changed = std::fs::metadata(&local).and_then(|meta| meta.modified());
    let since = match changed {
        Ok(time) => format!("{}", humantime::format_rfc3339_seconds(time)),
        Err(error) => format!("(unknown: {error})"),
    };
    format!(
        "{volume}{image}: the copy on {here} misses data: {accusers} say so.\n\
         Not reached: {lost}. Only there is the newest data.\n\
         Known to be lost: whatever was written after this copy last received data, {since}. \
         How much that is, only {lost} knew: at least one write, at most {size} bytes of the image.\n\
         If that host ever writes again to its copy, this is lost too when it comes back.\n\
         Unless the image was clean, this copy is a mixture of old and new: it was being healed in the \
         disk's order. Check the guest's file systems before you trust it.",
        volume = names.volume,
        image = place.located.image,
        here = names.one(place.local),
        accusers = names.list(plan.accusers),
        lost = names.list(plan.lost),
        size = place.located.size,
    )
}

fn confirm(args: &PromoteArgs, name: &str) -> Result<(), Failure> {
    let typed = match &args.confirm {
        Some(typed) => typed.clone(),
        None if !std::io::stdin().is_terminal() => {
            return Err(Failure::Usage(
                "not on a terminal: give --confirm VOLUME/IMAGE".to_owned(),
            ));
        }
        None => ask_for_name()?,
    };
    if typed.trim() == name {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "{:?} is not the image's name, {name:?}: nothing was changed",
        typed.trim()
    )))
}

fn ask_for_name() -> Result<String, Failure> {
    let failed = |source| Failure::System {
        what: "ask for the image's name",
        source,
    };
    print!("Type the image's name (VOLUME/IMAGE) to give that up: ");
    std::io::stdout().flush().map_err(failed)?;
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(failed)?;
    Ok(line)
}

fn promote_now(
    place: &Place,
    shape: &Shape,
    names: &Names,
    ports: &mut [Box<dyn BrickPort>],
    reached: BrickSet,
    args: &PromoteArgs,
) -> Result<Plan, Failure> {
    lock_data(names, ports, reached)?;
    let copies = probe(names, ports, reached)?;
    let plan = promotion::plan(shape, &copies).map_err(|why| refused(place, names, why))?;
    let stamp = new_stamp();
    let answered = copies.iter().enumerate();
    let all: Vec<_> = answered
        .filter_map(|(brick, copy)| Some((brick, copy.as_ref()?)))
        .map(|(brick, copy)| (brick, promotion::changes(shape, &plan, stamp, brick, copy)))
        .collect();
    let failed = |(brick, error)| brick_failed(names, brick, &error);
    promotion::carry_out(Step::Accuse, &all, ports).map_err(failed)?;
    record(place, &plan, args)?;
    promotion::carry_out(Step::Acquit, &all, ports).map_err(failed)?;
    for (brick, port) in ports.iter_mut().enumerate() {
        if reached.contains(brick)
            && let Err(error) = port.unlock(Lock::Data)
        {
            log::warn!("{}: {error}", names.one(brick));
        }
    }
    Ok(plan)
}

fn lock_data(
    names: &Names,
    ports: &mut [Box<dyn BrickPort>],
    reached: BrickSet,
) -> Result<(), Failure> {
    let begin = std::time::Instant::now();
    for (brick, port) in ports.iter_mut().enumerate() {
        while reached.contains(brick)
            && !port
                .try_lock(Lock::Data)
                .map_err(|error| brick_failed(names, brick, &error))?
        {
            if begin.elapsed() > DATA_LOCK_LIMIT {
                return Err(Failure::Open(OpenError::Busy {
                    volume: names.volume.clone(),
                    lock: Lock::Data,
                    brick: names.one(brick),
                }));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// On the disk when this returns: without it, the lost copy's accusation would count when
/// it comes back.
fn record(place: &Place, plan: &Plan, args: &PromoteArgs) -> Result<(), Failure> {
    let state = StateDir::new(&args.state_dir.state_dir);
    state.create()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let promotion = Promotion {
        at: now.unwrap_or_default().as_secs(),
        lost: plan.lost.iter().collect(),
        stamps: plan.stamps.clone(),
    };
    let located = &place.located;
    state.change(&located.volume, located.gfid, |known| {
        let extent_size = known.as_ref().and_then(Entry::chosen_extent_size);
        let mut entry = place.entry(known, extent_size);
        entry.promoted = Some(promotion);
        Some(entry)
    })?;
    Ok(())
}

/// Small and unlike what sessions store often enough: the next session stores its own.
fn new_stamp() -> i32 {
    i32::try_from(uuid::Uuid::new_v4().as_u128() as u32 >> 2)
        .unwrap_or(1)
        .max(1)
}

fn refused(place: &Place, names: &Names, why: PromotionRefusal) -> Failure {
    Failure::NotPromoted {
        image: format!("{}{}", names.volume, place.located.image),
        why: why.told(names),
    }
}

fn brick_failed(names: &Names, brick: usize, error: &PortError) -> OpenError {
    OpenError::BrickFailed {
        brick: names.one(brick),
        why: error.to_string(),
    }
}
