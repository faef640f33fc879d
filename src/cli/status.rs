//! `bypass-blk status`: the images of this host, or one image anywhere.

use std::cell::RefCell;
use std::time::Duration;

use clap::Args;

use crate::control::render;
use crate::control::status::{Fate, State, Status, Verified};
use crate::control::survey::{Places, survey};
use crate::daemon::brick_view::BrickView;
use crate::daemon::failure::Failure;
use crate::daemon::target::Target;
use crate::daemon::{heald, logging};
use crate::gluster::Timeouts;
use crate::image::state_dir::StateDir;

use super::arguments::{LogArgs, RunDirArgs, ServerArgs, StateDirArgs};
use super::watch;

/// So many things that could not be seen are named at the end.
const NAMED: usize = 3;

/// Arguments of `status`.
#[derive(Args, Debug)]
#[command(after_help = "\
Ends with 76 when something could not be seen: a daemon of this host does not answer or was \
killed, a folder may not be read (be root), or too few bricks answered. All that was seen is \
printed then, too.")]
pub struct StatusArgs {
    /// The image to look at: asked from its daemon when it is served on this
    /// host, else read from its bricks. Without it: every image that is served on this host
    /// or left to be healed, one line each if there are many, the worst first
    #[arg(value_name = "VOLUME/IMAGE")]
    target: Option<Target>,

    /// Print the JSON document (described in docs/status.md): an array of images
    #[arg(long)]
    json: bool,

    /// Everything about every image, however many there are
    #[arg(long)]
    details: bool,

    /// Of an image in shards, name each shard that is marked: some copy of it misses data
    #[arg(long)]
    files: bool,

    /// Show it again and again, every so many seconds (0.1 or more), until Ctrl-C: in
    /// place on a terminal; into a pipe one after the other, with --json one a line
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = watch::period
    )]
    watch: Option<Duration>,

    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    state_dir: StateDirArgs,

    #[command(flatten)]
    run_dir: RunDirArgs,

    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn run(args: StatusArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level.min(log::LevelFilter::Warn));
    let Some(period) = args.watch else {
        let seen = look(&args)?;
        watch::print(&seen.text(if args.json { Form::Json } else { Form::Screen })?)?;
        return seen.verdict();
    };
    match args.json {
        false => watch::watch(period, true, "\n", || look(&args)?.text(Form::Screen)),
        true => {
            let told = RefCell::default();
            watch::watch(period, false, "", || {
                let seen = look(&args)?;
                seen.tell_once(&told);
                seen.text(Form::JsonLine)
            })
        }
    }
}

/// How a report is written.
#[derive(Clone, Copy)]
enum Form {
    /// For people.
    Screen,
    /// The document.
    Json,
    /// The document in one line.
    JsonLine,
}

/// What was seen.
struct SeenImages<'a> {
    args: &'a StatusArgs,
    images: Vec<Status>,
    /// What could not be looked at.
    unseen: Vec<String>,
}

fn look(args: &StatusArgs) -> Result<SeenImages<'_>, Failure> {
    let places = Places {
        run_dir: args.run_dir.run_dir.clone(),
        state: StateDir::new(&args.state_dir.state_dir),
        healer: heald::socket_path(&args.run_dir.run_dir),
    };
    let found = survey(&places);
    let seen = |images, unseen| SeenImages {
        args,
        images,
        unseen,
    };
    let Some(target) = &args.target else {
        return Ok(seen(found.images, found.unseen));
    };
    // A daemon that does not have its image now knows less than the bricks.
    let is_target = |status: &&Status| {
        let held = status.holder.is_some();
        held && status.volume == target.volume && status.image == target.image.0
    };
    let status = match found.images.iter().find(is_target) {
        Some(status) => status.clone(),
        None => from_bricks(args, target, &found.images)?,
    };
    // Nothing else was asked for.
    Ok(seen(vec![status], Vec::new()))
}

/// As the bricks tell it, and what this host knows besides.
fn from_bricks(args: &StatusArgs, target: &Target, here: &[Status]) -> Result<Status, Failure> {
    let mut view = BrickView::load(&args.server.server, target, Timeouts::default())?;
    let holder = view.holder();
    let (copies, files) = view.copies();
    let mut identity = view.identity();
    let state = StateDir::new(&args.state_dir.state_dir);
    let entry = state.entry(&identity.volume, identity.gfid);
    identity.last_verified = entry.and_then(|entry| entry.verified.as_ref().map(Verified::from));
    let mut status = Status::of_bricks(&identity, copies, holder.as_ref());
    status.files = files;
    let is_it = |known: &&Status| known.gfid == status.gfid && known.volume == status.volume;
    if let Some(known) = here.iter().find(is_it)
        && known.unserved.is_some()
    {
        status.unserved.clone_from(&known.unserved);
        status.detail = status.detail.or_else(|| known.detail.clone());
    }
    Ok(status)
}

impl SeenImages<'_> {
    fn text(&self, form: Form) -> Result<String, Failure> {
        let document = match form {
            Form::Screen => return Ok(self.screen()),
            Form::Json => serde_json::to_string_pretty(&self.images),
            Form::JsonLine => serde_json::to_string(&self.images),
        };
        let document = document.map_err(|error| Failure::System {
            what: "write the document",
            source: error.into(),
        })?;
        Ok(document + "\n")
    }

    fn screen(&self) -> String {
        let unseen = self.unseen.iter();
        let mut out: String = unseen.map(|what| format!("NOT SEEN: {what}\n")).collect();
        out += &match self.images.as_slice() {
            [] if self.unseen.is_empty() => format!(
                "no image is served on this host, and none is left to be healed (by {} and {})\n",
                self.args.run_dir.run_dir.display(),
                self.args.state_dir.state_dir.display()
            ),
            images @ [_, _, ..] if !self.args.details => render::table(images),
            images => images.iter().map(|image| self.one(image)).collect(),
        };
        out
    }

    fn one(&self, image: &Status) -> String {
        match self.args.files {
            true => render::status(image) + &render::marked_files(image),
            false => render::status(image),
        }
    }

    /// All that could not be seen.
    fn all_unseen(&self) -> Vec<String> {
        let named = self.args.target.is_some();
        let blind = |image: &&Status| match (&image.unserved, image.state) {
            (Some(unserved), _) if unserved.daemon == Fate::Silent => true,
            (Some(unserved), State::Unknown) => named || unserved.daemon == Fate::Killed,
            (None, State::Unknown) => named,
            _ => false,
        };
        let images = self.images.iter().filter(blind).map(|image| {
            let fate = image.unserved.as_ref().map(|unserved| unserved.daemon);
            let why = match (fate, image.detail.as_deref()) {
                // What to do is on the screen.
                (Some(Fate::Killed), _) => "its daemon was killed",
                (_, Some(why)) => why,
                (_, None) => "its state is not known",
            };
            format!("{}{}: {why}", image.volume, image.image)
        });
        self.unseen.iter().cloned().chain(images).collect()
    }

    fn verdict(&self) -> Result<(), Failure> {
        let unseen = self.all_unseen();
        if unseen.is_empty() {
            return Ok(());
        }
        let named: Vec<_> = unseen.iter().take(NAMED).map(String::as_str).collect();
        let mut what = named.join("; ");
        if unseen.len() > NAMED {
            what += &format!("; and {} more", unseen.len() - NAMED);
        }
        if !rustix::process::geteuid().is_root() {
            what += ". Run it as root";
        }
        Err(Failure::Unseen { what })
    }

    /// Warns when something else cannot be seen than `told`.
    fn tell_once(&self, told: &RefCell<Vec<String>>) {
        let unseen = self.all_unseen();
        let before = told.replace(unseen.clone());
        for what in unseen.iter().filter(|what| !before.contains(what)) {
            log::warn!("not seen: {what}");
        }
    }
}
