package org.kdlite.demo.ui

import android.os.Bundle
import android.view.LayoutInflater
import android.view.View
import android.widget.LinearLayout
import android.widget.TextView
import org.kdlite.demo.R

/** A screen of text: a summary, and facts below it. */
abstract class PageActivity : ModelActivity() {
    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        show(R.layout.activity_page)
        findViewById<View>(R.id.summary).markHeading()
        load()
    }

    override fun onUnusable(sentence: String) = summary(sentence)

    protected fun summary(text: String) {
        findViewById<TextView>(R.id.summary).text = text
    }

    protected fun fact(title: String, value: String) {
        val list = findViewById<LinearLayout>(R.id.facts)
        val row = LayoutInflater.from(this).inflate(R.layout.row_fact, list, false)
        row.findViewById<TextView>(R.id.title).text = title
        row.findViewById<TextView>(R.id.value).text = value
        list.addView(row)
    }
}
