package org.kdlite.demo.ui

import android.content.Context
import org.kdlite.demo.core.Fit

/** What the user chose, kept over restarts. */
class Settings(context: Context) {
    private val stored = context.getSharedPreferences("settings", Context.MODE_PRIVATE)

    var threads: Int
        get() = stored.getInt("threads", 2).takeIf { it in THREADS } ?: 2
        set(value) = stored.edit().putInt("threads", value).apply()

    var fit: Fit
        get() = if (stored.getBoolean("centre", false)) Fit.CENTRE else Fit.WHOLE
        set(value) = stored.edit().putBoolean("centre", value == Fit.CENTRE).apply()

    companion object {
        val THREADS = listOf(1, 2, 4)
    }
}
