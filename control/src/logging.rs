//! The log: one line an event, text or JSON, in strongSwan's groups, and a tap that shows it to commands.

use std::fmt;
use std::io::IsTerminal as _;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt as log_fmt};

/// Groups, as strongSwan names them: IKE, network, messages, configuration, Child SAs, packets.
const GROUPS: [&str; 6] = ["IKE", "NET", "ENC", "CFG", "CHD", "ESP"];

/// The most lines that wait to be shown.
const TAPPED_MAX: usize = 1000;

/// How lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// `TIME [GROUP] message`
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Which lines are written: a level, or levels for groups, e.g. `info,IKE=debug`.
#[derive(Clone, Debug)]
pub struct LogFilter(Targets);

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        for part in text.split(',') {
            if let Some((group, _)) = part.split_once('=')
                && !GROUPS.contains(&group)
            {
                return Err(format!("'{group}' is not one of the groups {}", GROUPS.join(", ")));
            }
        }
        Targets::from_str(text).map(Self).map_err(|e| e.to_string())
    }
}

/// Starts logging to standard output. May be called once.
pub fn init(filter: LogFilter, format: LogFormat) -> LogTap {
    let tap = LogTap::default();
    let tapped = tap.clone().with_filter(tracing_subscriber::filter::LevelFilter::INFO);
    let registry = tracing_subscriber::registry().with(tapped);
    match format {
        LogFormat::Text => {
            let colours = std::io::stdout().is_terminal();
            let lines = log_fmt::layer().with_ansi(colours).event_format(Lines);
            registry.with(lines.with_filter(filter.0)).init();
        }
        LogFormat::Json => {
            registry.with(log_fmt::layer().json().flatten_event(true).with_filter(filter.0)).init();
        }
    }
    tap
}

/// Collects lines at level info while somebody wants them.
#[derive(Clone, Default)]
pub struct LogTap(Arc<Tapped>);

#[derive(Default)]
struct Tapped {
    open: AtomicBool,
    lines: Mutex<Vec<(&'static str, String)>>,
}

impl LogTap {
    /// Starts or stops collecting.
    pub fn set_open(&self, open: bool) {
        self.0.open.store(open, Ordering::Relaxed);
    }

    /// What was collected since the last time, with its groups.
    pub fn take(&self) -> Vec<(&'static str, String)> {
        std::mem::take(&mut *self.0.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: Subscriber> Layer<S> for LogTap {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if !self.0.open.load(Ordering::Relaxed) {
            return;
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        let mut lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < TAPPED_MAX {
            lines.push((group(event.metadata()), message.0));
        }
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write as _;
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.0, "{value:?}")
        } else {
            write!(self.0, "{}{}={value:?}", if self.0.is_empty() { "" } else { " " }, field.name())
        };
    }
}

/// Lines from other modules, such as the packet path's set-up, belong to the network group.
fn group(metadata: &Metadata<'_>) -> &'static str {
    GROUPS.into_iter().find(|g| *g == metadata.target()).unwrap_or("NET")
}

struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        SystemTime.format_time(&mut writer)?;
        write!(writer, " [{}] ", group(event.metadata()))?;
        match *event.metadata().level() {
            Level::ERROR => writer.write_str("error: ")?,
            Level::WARN => writer.write_str("warning: ")?,
            _ => {}
        }
        ctx.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use tracing::{debug, info, warn};

    use super::*;

    #[test]
    fn filters_name_known_groups_only() {
        for good in ["info", "debug", "info,IKE=debug", "warn,ENC=trace,NET=off"] {
            assert!(good.parse::<LogFilter>().is_ok(), "{good}");
        }
        assert!(LogFilter::from_str("IKEE=debug").is_err_and(|e| e.contains("IKE, NET")));
        assert!("info,IKE=loud".parse::<LogFilter>().is_err());
    }

    #[test]
    fn the_tap_collects_only_while_it_is_open() {
        let tap = LogTap::default();
        let subscriber = tracing_subscriber::registry().with(tap.clone());
        tracing::subscriber::with_default(subscriber, || {
            info!(target: "IKE", "nobody listens");
            tap.set_open(true);
            info!(target: "IKE", "IKE_SA {}[1] established", "home");
            warn!(name = "tun0", "plain");
            tap.set_open(false);
            debug!(target: "IKE", "late");
        });
        let lines = tap.take();
        assert_eq!(lines[0], ("IKE", "IKE_SA home[1] established".to_string()));
        assert_eq!(lines[1].0, "NET");
        assert!(lines[1].1.contains("plain") && lines[1].1.contains("tun0"), "{}", lines[1].1);
        assert_eq!(lines.len(), 2);
        assert!(tap.take().is_empty());
    }
}
